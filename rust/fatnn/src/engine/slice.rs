//! Buffers of values, by element type.

use crate::scalar::Int8Quantizer;

/// A buffer that holds a value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slice<'a> {
    Float(&'a [f32]),
    Integer(&'a [i64]),
    Mask(&'a [u8]),
    Int8(&'a [u8], Int8Quantizer),
    Codes(&'a [u8]),
}

impl<'a> Slice<'a> {
    /// The floats. Panics for other types, which the checks of the graph rule out.
    pub fn floats(self) -> &'a [f32] {
        match self {
            Slice::Float(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    /// The integers; panics as [`Slice::floats`] does.
    pub fn integers(self) -> &'a [i64] {
        match self {
            Slice::Integer(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    /// The mask; panics as [`Slice::floats`] does.
    pub fn mask(self) -> &'a [u8] {
        match self {
            Slice::Mask(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    /// The bytes of int8 values, and their quantizer; panics as [`Slice::floats`] does.
    pub fn int8(self) -> (&'a [u8], Int8Quantizer) {
        match self {
            Slice::Int8(x, quantizer) => (x, quantizer),
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    /// The packed codes; panics as [`Slice::floats`] does.
    pub fn codes(self) -> &'a [u8] {
        match self {
            Slice::Codes(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }
}

/// A buffer to write a value to.
#[derive(Debug)]
pub(crate) enum SliceMut<'a> {
    Float(&'a mut [f32]),
    Integer(&'a mut [i64]),
    Mask(&'a mut [u8]),
    Int8(&'a mut [u8]),
    Codes(&'a mut [u8]),
}

impl<'a> SliceMut<'a> {
    pub fn floats(self) -> &'a mut [f32] {
        match self {
            SliceMut::Float(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    pub fn integers(self) -> &'a mut [i64] {
        match self {
            SliceMut::Integer(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    pub fn mask(self) -> &'a mut [u8] {
        match self {
            SliceMut::Mask(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    /// The bytes of int8 values.
    pub fn int8(self) -> &'a mut [u8] {
        match self {
            SliceMut::Int8(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }

    pub fn codes(self) -> &'a mut [u8] {
        match self {
            SliceMut::Codes(x) => x,
            _ => unreachable!("the graph's kinds were checked"),
        }
    }
}
