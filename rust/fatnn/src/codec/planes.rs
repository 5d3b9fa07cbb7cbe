//! Activations as bit planes: the layout in which codes pass between layers.
//!
//! FATNN encodes a ternary value in two bits: -1 is `00`, 0 is `01` or `10`, +1 is `11`. The number
//! of set bits is the value plus one. As planes these bits are `p = [x ≥ 0]` and `x₂ = [x ≥ 1]`.
//! This layout stores the pair `(z, p)` instead, with `z = [x = 0] = p ⊕ x₂`, because the kernels'
//! adder reads it directly (`kernels/popcount`). `x₂` is `p ∧ ¬z`.
//!
//! **Invalid bits.** `z` without `p` is no code, and bits of channels beyond the last must be zero.
//! Kernels give undefined sums for invalid bits, so every public function that takes packed codes
//! rejects them ([`CodesLayout::check`]). Inside a network, only this crate writes codes.
//!
//! Two-bit activations use the same two words: the low bit of the level in place of `z`, the high
//! bit in place of `p`.

use crate::codec::{Act, Coding, MAX_THRESHOLDS};
use crate::error::{Result, bad_value, check_len};

const WORD: usize = 64;
/// Bytes of one unit: two planes of 64 channels.
const UNIT: usize = 16;
/// Maximum number of bytes per pixel.
const MAX_PIXEL_BYTES: usize = 1 << (usize::BITS / 2 + 8);

/// How the codes of one pixel are laid out. Channels are split into groups, and each group into
/// units of 64 channels (the last one padded with zero bits). A unit holds the two planes of its
/// [`Coding`] as two little-endian 64-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodesLayout {
    channels: usize,
    groups: usize,
    coding: Coding,
}

/// Position of some channels in a pixel: the byte offset of their unit, and their first bit in each
/// of its two words.
#[derive(Clone, Copy)]
struct Word {
    at: usize,
    shift: usize,
    /// Whether these channels fill the words, so that they can be stored without a read.
    whole: bool,
}

impl Word {
    #[inline(always)]
    fn or(self, pixel: &mut [u8], [first, second]: [u64; 2]) {
        let unit: &mut [u8; UNIT] =
            (&mut pixel[self.at..self.at + UNIT]).try_into().expect("as long");
        if self.whole {
            unit[..8].copy_from_slice(&first.to_le_bytes());
            unit[8..].copy_from_slice(&second.to_le_bytes());
        } else {
            or_word(&mut unit[..8], first << self.shift);
            or_word(&mut unit[8..], second << self.shift);
        }
    }
}

impl CodesLayout {
    /// A layout of ternary codes, for `channels` channels read by a convolution with `groups`
    /// groups.
    ///
    /// # Errors
    /// [`crate::Error::Value`] if `groups` is 0 or does not divide `channels`, if there are no
    /// channels, or if a pixel would take too many bytes.
    pub fn new(channels: usize, groups: usize) -> Result<Self> {
        if channels == 0 {
            return bad_value("channels", "at least 1", channels);
        }
        if groups == 0 || !channels.is_multiple_of(groups) {
            return bad_value("groups", format!("a divisor of the {channels} channels"), groups);
        }
        let layout = CodesLayout { channels, groups, coding: Coding::Ternary };
        // At most this many bytes per pixel: later sums of sizes cannot overflow.
        if layout.group_bytes().checked_mul(groups).is_none_or(|bytes| bytes > MAX_PIXEL_BYTES) {
            let got = format!("{channels} in {groups} groups");
            return bad_value(
                "channels",
                format!("so many that a pixel takes at most {MAX_PIXEL_BYTES} bytes"),
                got,
            );
        }
        Ok(layout)
    }

    /// The same layout with another coding.
    pub fn with(self, coding: Coding) -> Self {
        CodesLayout { coding, ..self }
    }

    /// How codes are written as bits.
    pub fn coding(self) -> Coding {
        self.coding
    }

    /// Channels per pixel.
    pub fn channels(self) -> usize {
        self.channels
    }

    /// Byte of a pixel that has the bit of `channel` in the first word of its unit.
    pub(crate) fn channel_byte(self, channel: usize) -> usize {
        let word = self.word_of(channel, 1).expect("one channel crosses no word");
        word.at + word.shift / 8
    }

    /// Number of channel groups; each is padded to a multiple of 64 channels.
    pub fn groups(self) -> usize {
        self.groups
    }

    /// Channels per group.
    pub fn group_channels(self) -> usize {
        self.channels / self.groups
    }

    /// Units of 64 channels per group.
    pub(crate) fn group_units(self) -> usize {
        self.group_channels().div_ceil(WORD)
    }

    /// Bytes per group.
    pub(crate) fn group_bytes(self) -> usize {
        self.group_units() * UNIT
    }

    /// Bytes per pixel.
    pub fn pixel_bytes(self) -> usize {
        self.groups * self.group_bytes()
    }

    /// Sets the bits of channels `first..first + channels` (at most 64) in one pixel. Bit `j` of
    /// each plane is channel `first + j`. Those bits must be zero before.
    #[inline(always)]
    pub(crate) fn or_planes(
        self,
        pixel: &mut [u8],
        first: usize,
        channels: usize,
        planes: [u64; 2],
    ) {
        match self.word_of(first, channels) {
            Some(word) => word.or(pixel, planes),
            None => self.or_planes_across(pixel, first, channels, planes),
        }
    }

    /// [`CodesLayout::or_planes`] for the same channels of many pixels: computes the position once.
    #[inline(always)]
    pub(crate) fn writer(self, first: usize, channels: usize) -> impl Fn(&mut [u8], [u64; 2]) {
        let word = self.word_of(first, channels);
        move |pixel, planes| match word {
            Some(word) => word.or(pixel, planes),
            None => self.or_planes_across(pixel, first, channels, planes),
        }
    }

    /// The position of the channels, or `None` if they cross a word or a group.
    #[inline(always)]
    fn word_of(self, first: usize, channels: usize) -> Option<Word> {
        let in_group = first % self.group_channels();
        let shift = in_group % WORD;
        let at = first / self.group_channels() * self.group_bytes() + in_group / WORD * UNIT;
        let end = in_group + channels;
        let whole = shift == 0 && (channels == WORD || end == self.group_channels());
        (end <= self.group_channels() && shift + channels <= WORD).then_some(Word {
            at,
            shift,
            whole,
        })
    }

    /// [`CodesLayout::or_planes`] for channels that cross a word or a group.
    #[cold]
    fn or_planes_across(self, pixel: &mut [u8], first: usize, channels: usize, planes: [u64; 2]) {
        let mut done = 0;
        while done < channels {
            let in_group = (first + done) % self.group_channels();
            let take =
                (channels - done).min(self.group_channels() - in_group).min(WORD - in_group % WORD);
            let mask = u64::MAX >> (WORD - take);
            self.or_planes(pixel, first + done, take, planes.map(|plane| plane >> done & mask));
            done += take;
        }
    }

    /// Packs `codes`, whole pixels of `channels` codes each, into `out`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the sizes do not fit; [`crate::Error::Value`] if a code is not
    /// one of the layout's coding.
    pub fn pack(self, codes: &[i8], out: &mut [u8]) -> Result<()> {
        let pixels = self.pixels("codes", codes.len(), self.channels)?;
        check_len("packed codes", pixels.saturating_mul(self.pixel_bytes()), out.len())?;
        self.coding.check(codes)?;
        out.fill(0);
        for (codes, out) in
            codes.chunks_exact(self.channels).zip(out.chunks_exact_mut(self.pixel_bytes()))
        {
            for (c, run) in codes.chunks(WORD).enumerate() {
                let mut reached = [0u64; MAX_THRESHOLDS];
                for (j, &code) in run.iter().enumerate() {
                    let level = code - self.coding.lowest();
                    for (i, reached) in reached.iter_mut().enumerate() {
                        *reached |= u64::from(level > i as i8) << j;
                    }
                }
                self.or_planes(out, c * WORD, run.len(), self.coding.planes(reached));
            }
        }
        Ok(())
    }

    /// `Ok` if all bits are valid: no bit is set for a channel beyond the last, and ternary codes
    /// have no `z` without `p`.
    ///
    /// # Errors
    /// [`crate::Error::Value`] naming the first pixel with an invalid bit.
    pub fn check(self, packed: &[u8]) -> Result<()> {
        match self.coding {
            Coding::Ternary => self.check_planes(packed, |z, p| z & !p),
            Coding::Uint2 => self.check_planes(packed, |_, _| 0),
        }
    }

    /// [`CodesLayout::check`] for codes that are read as `act`: binary activations may only be -1
    /// and 0.
    ///
    /// # Errors
    /// As [`CodesLayout::check`].
    pub fn check_for(self, act: Act, packed: &[u8]) -> Result<()> {
        match act {
            Act::Binary => self.check_planes(packed, |z, p| z ^ p),
            _ => self.check(packed),
        }
    }

    fn check_planes(self, packed: &[u8], wrong: impl Fn(u64, u64) -> u64) -> Result<()> {
        let tail = match self.group_channels() % WORD {
            0 => u64::MAX,
            rest => u64::MAX >> (WORD - rest),
        };
        let unit_wrong = |unit: &[u8; UNIT], exists: u64| {
            let unit = u128::from_le_bytes(*unit);
            let (z, p) = (unit as u64, (unit >> 64) as u64);
            wrong(z, p) | (z | p) & !exists
        };
        let group_wrong = |group: &[u8]| {
            let Some((last, units)) = group.as_chunks().0.split_last() else { return false };
            units.iter().fold(unit_wrong(last, tail), |all, unit| all | unit_wrong(unit, u64::MAX))
                != 0
        };
        let whole = match tail == u64::MAX {
            // Without padding all units are checked alike: one long loop.
            true => {
                packed.as_chunks().0.iter().fold(0, |all, unit| all | unit_wrong(unit, u64::MAX))
                    != 0
            }
            false => packed
                .chunks_exact(self.group_bytes())
                .fold(false, |all, group| all | group_wrong(group)),
        };
        if !whole {
            return Ok(());
        }
        let at = packed.chunks_exact(self.group_bytes()).position(group_wrong).unwrap_or(0)
            / self.groups;
        let expected = format!(
            "codes of {} channels in {} groups, of the type that is read",
            self.channels, self.groups
        );
        bad_value("packed codes", expected, format!("invalid bits in pixel {at}"))
    }

    /// The inverse of [`CodesLayout::pack`].
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the sizes do not fit; [`crate::Error::Value`] as
    /// [`CodesLayout::check`].
    pub fn unpack(self, packed: &[u8], codes: &mut [i8]) -> Result<()> {
        let pixels = self.pixels("packed codes", packed.len(), self.pixel_bytes())?;
        check_len("codes", pixels.saturating_mul(self.channels), codes.len())?;
        self.check(packed)?;
        for (packed, codes) in
            packed.chunks_exact(self.pixel_bytes()).zip(codes.chunks_exact_mut(self.channels))
        {
            for (packed, codes) in packed
                .chunks_exact(self.group_bytes())
                .zip(codes.chunks_exact_mut(self.group_channels()))
            {
                for (unit, codes) in packed.chunks_exact(UNIT).zip(codes.chunks_mut(WORD)) {
                    let (first, second) = (word(&unit[..8]), word(&unit[8..]));
                    for (j, code) in codes.iter_mut().enumerate() {
                        let (low, high) = ((first >> j & 1) as i8, (second >> j & 1) as i8);
                        *code = match self.coding {
                            Coding::Ternary => 2 * high - low - 1,
                            Coding::Uint2 => 2 * high + low,
                        };
                    }
                }
            }
        }
        Ok(())
    }

    fn pixels(self, what: &'static str, len: usize, per_pixel: usize) -> Result<usize> {
        if !len.is_multiple_of(per_pixel) {
            return Err(crate::Error::Shape {
                what,
                expected: format!(
                    "a multiple of {per_pixel} elements ({} channels)",
                    self.channels
                ),
                got: len.to_string(),
            });
        }
        Ok(len / per_pixel)
    }
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
}

#[inline(always)]
fn or_word(bytes: &mut [u8], bits: u64) {
    let bytes: &mut [u8; 8] = bytes.try_into().expect("8 bytes");
    *bytes = (u64::from_le_bytes(*bytes) | bits).to_le_bytes();
}
