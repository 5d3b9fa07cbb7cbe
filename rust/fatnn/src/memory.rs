//! Memory whose size data decides: the only functions that allocate it, since they report where
//! there is none.
//!
//! `vec![x; n]`, `to_vec` and `collect` abort the process where memory runs out. Sizes that come
//! from weights, files or inputs go through these functions, whose error is [`Error::Memory`].
//! `scripts/check-allocations.py` finds the other form in this crate and its bindings; a short list
//! of a few elements is marked `// small` there.

use crate::error::{Error, Result};

/// An empty vector with room for `len` elements.
///
/// # Errors
/// [`Error::Memory`] if there is not so much.
pub fn reserved<T>(what: &'static str, len: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    reserve(what, &mut vec, len)?;
    Ok(vec)
}

/// Makes room for exactly `more` elements behind those of `vec`.
///
/// # Errors
/// As [`reserved`].
pub fn reserve<T>(what: &'static str, vec: &mut Vec<T>, more: usize) -> Result<()> {
    vec.try_reserve_exact(more)
        .map_err(|_| Error::Memory { what, bytes: more.saturating_mul(size_of::<T>()) })
}

/// `len` times `value`.
///
/// # Errors
/// As [`reserved`].
pub fn filled<T: Clone>(what: &'static str, len: usize, value: T) -> Result<Vec<T>> {
    let mut vec = reserved(what, len)?;
    vec.resize(len, value);
    Ok(vec)
}

/// A copy of `values`.
///
/// # Errors
/// As [`reserved`].
pub fn copied<T: Copy>(what: &'static str, values: &[T]) -> Result<Vec<T>> {
    let mut vec = reserved(what, values.len())?;
    vec.extend_from_slice(values);
    Ok(vec)
}

/// Elements of an iterator that knows how many there are.
///
/// # Errors
/// As [`reserved`].
pub fn collected<T>(
    what: &'static str,
    values: impl ExactSizeIterator<Item = T>,
) -> Result<Vec<T>> {
    let mut vec = reserved(what, values.len())?;
    vec.extend(values);
    Ok(vec)
}

/// At least `len` elements; new ones are `value`.
///
/// # Errors
/// As [`reserved`].
pub fn grow<T: Clone>(what: &'static str, vec: &mut Vec<T>, len: usize, value: T) -> Result<()> {
    if vec.len() < len {
        reserve(what, vec, len - vec.len())?;
        vec.resize(len, value);
    }
    Ok(())
}

/// The product of sizes; `None` where it overflows. A zero does not hide an overflow of the others:
/// code multiplies sizes in any order.
pub(crate) fn product(sizes: impl IntoIterator<Item = usize>) -> Option<usize> {
    let mut zero = false;
    let whole = sizes.into_iter().try_fold(1usize, |n, size| {
        zero |= size == 0;
        n.checked_mul(size.max(1))
    })?;
    Some(if zero { 0 } else { whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_an_error() {
        let message = filled("test", 1 << 50, 0u64).unwrap_err().to_string();
        assert!(
            message.contains("test") && message.contains(&(8u64 << 50).to_string()),
            "{message}"
        );
        assert!(matches!(
            reserved::<u64>("test", usize::MAX),
            Err(Error::Memory { bytes: usize::MAX, .. })
        ));
        let mut vec = vec![1u8];
        assert!(grow("test", &mut vec, 1 << 60, 2).is_err());
        grow("test", &mut vec, 3, 2).unwrap();
        assert_eq!(vec, [1, 2, 2]);
    }

    #[test]
    fn a_zero_hides_no_overflow() {
        assert_eq!(product([0, 1 << 40, 1 << 40]), None);
        assert_eq!(product([0, 7]), Some(0));
        assert_eq!(product([3, 7]), Some(21));
    }
}
