//! Packing and unpacking: round trips, canonical bytes, and rejected inputs.

mod common;

use common::{codes, values};
use fatnn::Error;
use fatnn::codec::{Act, CodesLayout, Coding, WeightKind, base3, signs, trits, two_bit};
use proptest::prelude::*;

/// Sequences of codes, with lengths around the sizes of bytes and words.
fn sequences() -> impl Iterator<Item = Vec<i8>> {
    (0..=131).flat_map(|n| [codes(n, n as u64), vec![-1; n], vec![0; n], vec![1; n]])
}

#[test]
fn trits_round_trip_and_match_the_formula() {
    for codes in sequences() {
        let mut bytes = vec![0xFF; trits::encoded_len(codes.len())];
        trits::encode(&codes, &mut bytes).unwrap();
        for (i, &code) in codes.iter().enumerate() {
            assert_eq!(i32::from(bytes[i / 5]) / 3i32.pow(i as u32 % 5) % 3, i32::from(code) + 1);
        }
        let mut back = vec![9; codes.len()];
        trits::decode(&bytes, &mut back).unwrap();
        assert_eq!(back, codes);
    }
}

#[test]
fn base3_groups_round_trip_and_match_the_formula() {
    for codes in sequences() {
        let mut bytes = vec![0xFF; base3::packed_len(codes.len())];
        base3::pack(&codes, &mut bytes).unwrap();
        for (i, &code) in codes.iter().enumerate() {
            assert_eq!(i32::from(bytes[i / 4]) / 3i32.pow(i as u32 % 4) % 3, i32::from(code) + 1);
        }
        let mut back = vec![9; codes.len()];
        base3::unpack(&bytes, &mut back).unwrap();
        assert_eq!(back, codes);
    }
}

#[test]
fn two_bit_weights_round_trip_and_match_the_formula() {
    for n in 0..=67 {
        for weights in [values(WeightKind::TwoBit.codes(), n, n as u64), vec![-3; n], vec![3; n]] {
            let mut bytes = vec![0xFF; two_bit::encoded_len(n)];
            two_bit::encode(&weights, &mut bytes).unwrap();
            for (i, &w) in weights.iter().enumerate() {
                assert_eq!(2 * (bytes[i / 4] >> (2 * (i % 4)) & 3) as i8 - 3, w);
            }
            let mut back = vec![9; n];
            two_bit::decode(&bytes, &mut back).unwrap();
            assert_eq!(back, weights);
            // Unused bits are zero, and must be.
            for place in n..4 * bytes.len() {
                let mut other = bytes.clone();
                other[place / 4] |= 2 << (2 * (place % 4));
                assert!(matches!(two_bit::decode(&other, &mut back), Err(Error::Value { .. })));
            }
        }
    }
    assert!(matches!(two_bit::encode(&[3; 5], &mut [0]), Err(Error::Shape { .. })));
    assert!(matches!(two_bit::decode(&[0; 2], &mut [0; 4]), Err(Error::Shape { .. })));
    for bad in [-4, -2, 0, 2, 5, i8::MIN] {
        let error = two_bit::encode(&[1, bad], &mut [0]).unwrap_err().to_string();
        assert!(error.contains(&format!("{bad} at element 1")), "{error}");
    }
}

#[test]
fn binary_weights_round_trip_and_match_the_formula() {
    for n in 0..=67 {
        for weights in [values(WeightKind::Binary.codes(), n, n as u64), vec![-1; n], vec![1; n]] {
            let mut bytes = vec![0xFF; signs::encoded_len(n)];
            signs::encode(&weights, &mut bytes).unwrap();
            for (i, &w) in weights.iter().enumerate() {
                assert_eq!(2 * (bytes[i / 8] >> (i % 8) & 1) as i8 - 1, w);
            }
            let mut back = vec![9; n];
            signs::decode(&bytes, &mut back).unwrap();
            assert_eq!(back, weights);
            // Unused bits are zero, and must be.
            for place in n..8 * bytes.len() {
                let mut other = bytes.clone();
                other[place / 8] |= 1 << (place % 8);
                assert!(matches!(signs::decode(&other, &mut back), Err(Error::Value { .. })));
            }
        }
    }
    assert!(matches!(signs::encode(&[1; 9], &mut [0]), Err(Error::Shape { .. })));
    assert!(matches!(signs::decode(&[0; 2], &mut [0; 8]), Err(Error::Shape { .. })));
    for bad in [-3, 0, 2, 3, i8::MIN] {
        let error = signs::encode(&[1, bad], &mut [0]).unwrap_err().to_string();
        assert!(error.contains(&format!("{bad} at element 1")), "{error}");
    }
}

/// An encoder and its decoder.
type Codec = (fn(&[i8], &mut [u8]) -> fatnn::Result<()>, fn(&[u8], &mut [i8]) -> fatnn::Result<()>);

#[test]
fn decoders_reject_bytes_that_encoders_never_write() {
    let codecs: [(usize, Codec); 2] =
        [(5, (trits::encode, trits::decode)), (4, (base3::pack, base3::unpack))];
    for (per_byte, (encode, decode)) in codecs {
        for used in 1..=per_byte {
            let mut accepted = 0;
            for byte in 0..=255u8 {
                let mut codes = vec![9; used];
                match decode(&[byte], &mut codes) {
                    Ok(()) => {
                        let mut again = [0xEE];
                        encode(&codes, &mut again).unwrap();
                        assert_eq!(again, [byte], "{used} codes of {per_byte}");
                        accepted += 1;
                    }
                    Err(error) => assert!(matches!(error, Error::Value { .. }), "{error}"),
                }
            }
            assert_eq!(accepted, 3usize.pow(used as u32), "{used} codes of {per_byte}");
        }
        let names_the_place =
            decode(&[0, 255, 0], &mut vec![0; 3 * per_byte]).unwrap_err().to_string();
        assert!(names_the_place.contains("255 at byte 1"), "{names_the_place}");
    }
}

#[test]
fn wrong_sizes_and_codes_are_refused() {
    let shape = |result: fatnn::Result<()>| {
        assert!(matches!(result, Err(Error::Shape { .. })), "{result:?}")
    };
    let value = |result: fatnn::Result<()>| {
        assert!(matches!(result, Err(Error::Value { .. })), "{result:?}")
    };
    shape(trits::encode(&[0; 6], &mut [0; 1]));
    shape(trits::decode(&[121; 3], &mut [0; 10]));
    shape(base3::pack(&[0; 5], &mut [0; 3]));
    shape(base3::unpack(&[40; 1], &mut [0; 5]));
    value(trits::encode(&[0, 2], &mut [0]));
    value(base3::pack(&[-2], &mut [0]));
    let layout = CodesLayout::new(3, 1).unwrap();
    shape(layout.pack(&[0; 4], &mut [0; 16]));
    shape(layout.pack(&[0; 3], &mut [0; 32]));
    shape(layout.unpack(&[0; 15], &mut [0; 3]));
    shape(layout.unpack(&[0; 16], &mut [0; 6]));
    value(layout.pack(&[0, 0, i8::MIN], &mut [0; 16]));
    value(layout.with(Coding::Uint2).pack(&[0, 3, -1], &mut [0; 16]));
    value(layout.with(Coding::Uint2).pack(&[0, 4, 1], &mut [0; 16]));
    value(layout.pack(&[0, 2, 1], &mut [0; 16]));
    assert!(CodesLayout::new(0, 1).is_err());
    assert!(CodesLayout::new(6, 0).is_err());
    assert!(CodesLayout::new(6, 4).is_err());
}

#[test]
fn planes_have_the_documented_layout() {
    for (channels, groups) in [(1, 1), (64, 1), (65, 1), (130, 2), (96, 3), (5, 5), (256, 2)] {
        let layout = CodesLayout::new(channels, groups).unwrap();
        let per_group = channels / groups;
        let bytes = groups * per_group.div_ceil(64) * 16;
        assert_eq!(layout.pixel_bytes(), bytes);
        let codes = codes(3 * channels, channels as u64);
        let mut packed = vec![0xA5; 3 * bytes];
        layout.pack(&codes, &mut packed).unwrap();
        let mut expected = vec![0u8; 3 * bytes];
        for pixel in 0..3 {
            for channel in 0..channels {
                let (group, place) = (channel / per_group, channel % per_group);
                let unit = pixel * bytes + (group * per_group.div_ceil(64) + place / 64) * 16;
                let (byte, bit) = (place % 64 / 8, place % 8);
                let code = codes[pixel * channels + channel];
                expected[unit + byte] |= u8::from(code == 0) << bit;
                expected[unit + 8 + byte] |= u8::from(code >= 0) << bit;
            }
        }
        assert_eq!(packed, expected, "{channels} channels in {groups} groups");
        // Two-bit codes are levels in binary, in the same words.
        let levels = values(Act::Uint2.codes(), 3 * channels, channels as u64);
        let layout_of_two_bits = layout.with(Coding::Uint2);
        let binary = common::pack(layout_of_two_bits, &levels);
        for (i, &level) in levels.iter().enumerate() {
            let (group, place) = (i % channels / per_group, i % channels % per_group);
            let unit = i / channels * bytes + (group * per_group.div_ceil(64) + place / 64) * 16;
            let bit = |byte: usize| (binary[unit + byte + place % 64 / 8] >> (place % 8) & 1) as i8;
            assert_eq!(bit(0) + 2 * bit(8), level);
        }
        let ones = |bytes: &[u8]| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
        assert_eq!(
            ones(&binary),
            levels.iter().map(|level| level.count_ones()).sum::<u32>(),
            "unused bits are zero"
        );
        let mut back = vec![9; levels.len()];
        layout_of_two_bits.unpack(&binary, &mut back).unwrap();
        assert_eq!(back, levels);
        let mut back = vec![9; codes.len()];
        layout.unpack(&packed, &mut back).unwrap();
        assert_eq!(back, codes);
    }
}

proptest! {
    #![proptest_config(common::proptest_config(256))]

    #[test]
    fn random_codes_round_trip_in_every_format(codes in prop::collection::vec(-1i8..=1, 1..400),
    groups in 1usize..6) {
        let mut back = vec![9; codes.len()];
        let mut bytes = vec![0; trits::encoded_len(codes.len())];
        trits::encode(&codes, &mut bytes).unwrap();
        trits::decode(&bytes, &mut back).unwrap();
        prop_assert_eq!(&back, &codes);

        let mut bytes = vec![0; base3::packed_len(codes.len())];
        base3::pack(&codes, &mut bytes).unwrap();
        base3::unpack(&bytes, &mut back).unwrap();
        prop_assert_eq!(&back, &codes);

        let codes = &codes[..codes.len() / groups * groups];
        if !codes.is_empty() {
            let layout = CodesLayout::new(codes.len(), groups).unwrap();
            let mut back = vec![9; codes.len()];
            layout.unpack(&common::pack(layout, codes), &mut back).unwrap();
            prop_assert_eq!(&back[..], codes);
        }
    }

    #[test]
    fn random_bytes_are_decoded_or_rejected(bytes in prop::collection::vec(any::<u8>(), 0..20),
    n in 0usize..100) {
        let mut codes = vec![0; n];
        for result in [trits::decode(&bytes, &mut codes), base3::unpack(&bytes, &mut codes)] {
            let fine = matches!(result, Ok(()) | Err(Error::Shape { .. } | Error::Value { .. }));
            prop_assert!(fine);
        }
        prop_assert!(codes.iter().all(|c| (-1..=1).contains(c)));
    }
}
