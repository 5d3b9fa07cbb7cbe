//! Names of element types, for activations, weights, values and tensors.
//!
//! | type | of | names |
//! | --- | --- | --- |
//! | [`ActType`] | activations of a layer | `full`, `half`, `uint2`, `binary` |
//! | [`WeightType`] | weights of a layer | `binary`, `ternary`, `two-bit`, `int8`, `float32` |
//! | [`CodeType`] | packed codes between layers | `ternary`, `two-bit`, `binary` |
//! | [`ValueType`] | a value between nodes | `float32`, or codes with channels and groups |
//! | [`TensorType`] | a stored tensor | `float32`, `int32`, `int64`, `int8`, `binary`, `ternary`, `two-bit` |
//!
//! Configuration, graph, file, kernels and bindings use only these names.

mod act;
mod value;
mod weight;

pub(crate) use act::MAX_THRESHOLDS;
pub use act::{ActType, Coding};
pub use value::{CodeType, INPUT_TYPES, TensorType, ValueType};
pub use weight::{WeightKind, WeightType};

#[cfg(test)]
mod tests {
    use super::weight::CHUNK;
    use super::*;

    #[test]
    fn every_name_parses_to_its_own_type() {
        for act in ActType::ALL {
            assert_eq!(ActType::from_name(act.name()).unwrap(), act);
        }
        for weight in WeightType::ALL {
            assert_eq!(WeightType::from_name(weight.name()).unwrap(), weight);
            assert!(weight.codes().is_none_or(|kind| WeightType::from(kind) == weight));
        }
        assert!(WeightType::from_name("one").unwrap_err().to_string().contains("float32"));
        for codes in CodeType::ALL {
            assert_eq!(CodeType::from_name(codes.name()).unwrap(), codes);
        }
        for dtype in TensorType::ALL {
            assert_eq!(TensorType::from_name(dtype.name()).unwrap(), dtype);
        }
        let message = TensorType::from_name("codes").unwrap_err().to_string();
        assert!(message.contains("binary, ternary or two-bit, got \"codes\""), "{message}");
    }

    #[test]
    fn check_names_the_first_weight_of_another_kind() {
        for kind in WeightKind::ALL {
            let mut weights: Vec<i8> =
                (0..CHUNK + 9).map(|i| kind.codes()[i % kind.codes().len()]).collect();
            kind.check("weight", &weights).unwrap();
            for wrong in (i8::MIN..=i8::MAX).filter(|w| !kind.codes().contains(w)) {
                weights[CHUNK + 3] = wrong;
                let message = kind.check("weight", &weights).unwrap_err().to_string();
                assert!(
                    message.contains(&format!("{wrong} at element {}", CHUNK + 3)),
                    "{message}"
                );
                assert!(message.contains(kind.name()), "{message}");
            }
        }
    }

    #[test]
    fn readers_of_ternary_codes_accept_binary_codes() {
        let of = |codes| ValueType::Codes { codes, channels: 8, groups: 2 };
        assert!(of(CodeType::Binary).fits(of(CodeType::Ternary)));
        assert!(!of(CodeType::Ternary).fits(of(CodeType::Binary)));
        assert!(!ValueType::F32.fits(of(CodeType::Ternary)));
    }
}
