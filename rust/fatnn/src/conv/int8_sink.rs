//! Sinks of ternary convolutions whose output is stored as bytes.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use super::tiled::{OutputChunk, Sink};
use crate::epilogue::{Dequantize, DequantizeInt8, Residual};
use crate::error::Result;
use crate::kernels::{TileAcc, TileEpilogue};
use crate::memory;

/// Rows of a shortcut that wait for the convolution that adds them.
struct ShortcutRows {
    first: usize,
    floats: Vec<f32>,
}

thread_local! {
    /// The buffer is kept between calls, so only the first run allocates.
    static SHORTCUT: RefCell<ShortcutRows> =
        const { RefCell::new(ShortcutRows { first: 0, floats: Vec::new() }) };
}

/// Writes float32 results as bytes.
pub(crate) struct Int8Sink<'a> {
    pub role: Int8Role<'a>,
    /// Set if one of the values may be NaN.
    pub nan: AtomicBool,
}

/// What an [`Int8Sink`] does with the sums.
pub(crate) enum Int8Role<'a> {
    /// Writes them, plus a residual.
    Write(DequantizeInt8<'a>, Residual<'a>),
    /// Keeps them as the residual of `Add`, on the same thread.
    Keep(Dequantize<'a>),
    /// Writes them, plus what `Keep` kept.
    Add(DequantizeInt8<'a>),
}

impl<'a> Int8Sink<'a> {
    pub fn new(role: Int8Role<'a>) -> Self {
        Int8Sink { role, nan: AtomicBool::new(false) }
    }

    fn dequantize(&self) -> &Dequantize<'a> {
        match &self.role {
            Int8Role::Write(to, _) | Int8Role::Add(to) => &to.floats,
            Int8Role::Keep(to) => to,
        }
    }
}

impl Sink for Int8Sink<'_> {
    type Elem = u8;

    fn row_len(&self) -> usize {
        self.dequantize().channels
    }

    fn codes_len(&self) -> usize {
        self.dequantize().codes.map_or(0, |codes| codes.layout.pixel_bytes())
    }

    fn kept_bytes(&self) -> usize {
        if let Int8Role::Keep(to) = &self.role { to.channels * size_of::<f32>() } else { 0 }
    }

    fn begin(&self, first: usize, rows: usize) -> Result<()> {
        let Int8Role::Keep(to) = &self.role else { return Ok(()) };
        SHORTCUT.with_borrow_mut(|kept| {
            kept.first = first;
            memory::grow("rows of a shortcut", &mut kept.floats, rows * to.channels, 0.0)
        })
    }

    fn write(
        &self,
        epilogue: &dyn TileEpilogue,
        tile: &TileAcc<'_>,
        row: usize,
        chunk: OutputChunk<'_, u8>,
    ) {
        let OutputChunk { out, codes_out } = chunk;
        let no_nan = match &self.role {
            Int8Role::Write(to, residual) => {
                let residual = residual.from(row * to.floats.channels);
                epilogue.to_int8(tile, to, residual, out, codes_out)
            }
            // Without codes, this does not look for NaN; the sum does.
            Int8Role::Keep(to) => SHORTCUT.with_borrow_mut(|kept| {
                let floats = &mut kept.floats[(row - kept.first) * to.channels..];
                epilogue.to_float(tile, to, Residual::None, floats, &mut [])
            }),
            Int8Role::Add(to) => SHORTCUT.with_borrow(|kept| {
                let floats = &kept.floats[(row - kept.first) * to.floats.channels..];
                epilogue.to_int8(tile, to, Residual::Of(floats), out, codes_out)
            }),
        };
        if !no_nan {
            self.nan.store(true, Ordering::Relaxed);
        }
    }
}
