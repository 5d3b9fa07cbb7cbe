//! Allocations whose size depends on data. They return [`Error::Memory`] on failure.
//!
//! `vec![x; n]`, `to_vec` and `collect` abort the process if memory runs out. Sizes that come from
//! weights, files or inputs therefore go through these functions. `scripts/check-allocations.py`
//! finds direct allocations in this crate and its bindings; the mark `// small` allows a list of a
//! few elements.

use crate::error::{Error, Result};

/// An empty vector with room for `len` elements.
///
/// # Errors
/// [`Error::Memory`] if the allocation fails.
pub fn reserved<T>(what: &'static str, len: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    reserve(what, &mut vec, len)?;
    Ok(vec)
}

/// Reserves room for exactly `more` additional elements.
///
/// # Errors
/// As [`reserved`].
pub fn reserve<T>(what: &'static str, vec: &mut Vec<T>, more: usize) -> Result<()> {
    vec.try_reserve_exact(more)
        .map_err(|_| Error::Memory { what, bytes: more.saturating_mul(size_of::<T>()) })
}

/// A vector of `len` copies of `value`.
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

/// The elements of an iterator with a known length.
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

/// Grows `vec` to at least `len` elements; new ones are `value`.
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

/// The product of `sizes`; `None` on overflow. A zero factor does not hide an overflow of the
/// others, because callers multiply sizes in any order.
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
    fn a_failed_allocation_is_an_error() {
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
    fn a_zero_factor_does_not_hide_an_overflow() {
        assert_eq!(product([0, 1 << 40, 1 << 40]), None);
        assert_eq!(product([0, 7]), Some(0));
        assert_eq!(product([3, 7]), Some(21));
    }
}
