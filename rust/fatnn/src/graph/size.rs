//! Sizes of dimensions: numbers, or expressions of sizes that each run chooses.
//!
//! Shapes that are equal for the example input may differ in another run: a parameter of shape `[1,
//! C, H, W]` has the shape of a map only at batch 1. Equal expressions are equal sizes in every
//! run, because expressions have a normal form. Different expressions may still be equal.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use crate::window::AxisParams;

/// The size of a dimension.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Size {
    /// A number, the same in every run.
    Known(usize),
    /// An expression of [`Sizes`] plus a number.
    Free {
        /// Index of the expression.
        base: u32,
        /// The number added to the expression.
        offset: i64,
    },
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Known(size) => write!(f, "{size}"),
            Size::Free { .. } => write!(f, "?"),
        }
    }
}

impl Size {
    /// The number; `None` for an expression.
    pub fn known(self) -> Option<usize> {
        match self {
            Size::Known(size) => Some(size),
            Size::Free { .. } => None,
        }
    }

    /// Whether the size is this number in every run.
    pub fn is(self, size: usize) -> bool {
        self == Size::Known(size)
    }

    /// Whether the size may be this number in some run.
    pub fn may_be(self, size: usize) -> bool {
        self.known().is_none_or(|known| known == size)
    }

    /// Whether both may be equal in some run.
    pub fn may_equal(self, other: Size) -> bool {
        other.known().is_none_or(|size| self.may_be(size))
    }
}

/// Whether two shapes may be equal in some run.
pub(super) fn may_equal(a: &[Size], b: &[Size]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.may_equal(*b))
}

#[derive(PartialEq, Eq, Hash)]
enum Expression {
    /// A size about which nothing is known; equal only to itself.
    Fresh(usize),
    /// `⌊(base + add) / by⌋`.
    Quotient {
        base: u32,
        add: i64,
        by: i64,
    },
    /// Number of windows of a pool with `ceil_mode`.
    CeilWindows {
        size: Size,
        axis: AxisParams,
    },
    Sum(Vec<Size>),
    Product {
        free: Vec<Size>,
        factor: usize,
    },
}

/// The expressions of a graph's sizes. Each is stored once, so two sizes are equal exactly if their
/// indices and offsets are.
#[derive(Default)]
pub struct Sizes {
    indices: RefCell<HashMap<Expression, u32>>,
    /// Free factors and constant factor of every expression that is a product.
    products: RefCell<HashMap<u32, (Vec<Size>, usize)>>,
}

/// Products with more free factors than this are not split again.
const MAX_FACTORS: usize = 16;

impl Sizes {
    fn intern(&self, expression: Expression) -> Size {
        let mut indices = self.indices.borrow_mut();
        // More than 2³² expressions do not fit in memory.
        let next = indices.len() as u32;
        Size::Free { base: *indices.entry(expression).or_insert(next), offset: 0 }
    }

    /// A new dynamic size, equal only to itself.
    pub fn fresh(&self) -> Size {
        let count = self.indices.borrow().len();
        self.intern(Expression::Fresh(count))
    }

    /// `size + add`.
    pub(super) fn plus(&self, size: Size, add: i64) -> Result<Size, String> {
        let too_large = || format!("the size {size:?} + {add} is out of range");
        Ok(match size {
            Size::Known(size) => {
                Size::Known(size.checked_add_signed(add as isize).ok_or_else(too_large)?)
            }
            Size::Free { base, offset } => {
                Size::Free { base, offset: offset.checked_add(add).ok_or_else(too_large)? }
            }
        })
    }

    /// Number of windows that fit an axis: `⌊(size + 2·padding - reach) / stride⌋ + 1`.
    pub(super) fn windows(&self, base: u32, offset: i64, axis: AxisParams) -> Size {
        let reach = i64::try_from(axis.reach()).unwrap_or(i64::MAX);
        let by = axis.stride.max(1) as i64;
        let add = offset.saturating_add(2 * axis.padding as i64).saturating_sub(reach);
        let (whole, rest) = (add.div_euclid(by), add.rem_euclid(by));
        let quotient = match by {
            1 => Size::Free { base, offset: 0 },
            _ => self.intern(Expression::Quotient { base, add: rest, by }),
        };
        match quotient {
            Size::Free { base, .. } => Size::Free { base, offset: whole.saturating_add(1) },
            known => known,
        }
    }

    /// As [`Sizes::windows`], but the last window may extend beyond the padded input.
    pub(super) fn ceil_windows(&self, base: u32, offset: i64, axis: AxisParams) -> Size {
        match axis.stride {
            1 => self.windows(base, offset, axis),
            _ => self.intern(Expression::CeilWindows { size: Size::Free { base, offset }, axis }),
        }
    }

    /// The sum of sizes.
    pub(super) fn sum(&self, sizes: &[Size]) -> Result<Size, String> {
        let (mut known, mut free) = (0i64, Vec::new());
        for size in sizes {
            let add = match *size {
                Size::Known(size) => i64::try_from(size).ok(),
                Size::Free { base, offset } => {
                    free.push(Size::Free { base, offset: 0 });
                    Some(offset)
                }
            };
            let sum = add.and_then(|add| known.checked_add(add));
            known = sum.ok_or_else(|| format!("the sum of the sizes {sizes:?} is too large"))?;
        }
        match free.as_slice() {
            [] => Ok(Size::Known(known as usize)),
            [one] => self.plus(*one, known),
            _ => self.plus(self.intern(Expression::Sum(free)), known),
        }
    }

    /// The product of sizes.
    pub(super) fn product(&self, sizes: &[Size]) -> Result<Size, String> {
        let too_large = || format!("the shape {sizes:?} is too large");
        let known = crate::memory::product(sizes.iter().filter_map(|size| size.known()))
            .ok_or_else(too_large)?;
        let mut free: Vec<Size> = Vec::new();
        let mut factor = known;
        for size in sizes.iter().filter(|size| size.known().is_none()) {
            // Flatten nested products.
            match self.factors(*size) {
                Some((inner, more)) => {
                    free.extend(inner);
                    factor = factor.checked_mul(more).ok_or_else(too_large)?;
                }
                None => free.push(*size),
            }
        }
        Ok(match known {
            0 => Size::Known(0),
            _ => self.product_of(free, factor),
        })
    }

    fn product_of(&self, mut free: Vec<Size>, factor: usize) -> Size {
        match (free.as_slice(), factor) {
            ([], _) => Size::Known(factor),
            ([one], 1) => *one,
            _ => {
                free.sort_by_key(|size| match size {
                    Size::Known(size) => (0, *size as i64),
                    Size::Free { base, offset } => (*base, *offset),
                });
                let product = self.intern(Expression::Product { free: free.clone(), factor });
                if let Size::Free { base, .. } = product
                    && free.len() <= MAX_FACTORS
                {
                    self.products.borrow_mut().insert(base, (free, factor));
                }
                product
            }
        }
    }

    /// Free factors and constant factor of a size that is a product.
    fn factors(&self, size: Size) -> Option<(Vec<Size>, usize)> {
        let Size::Free { base, offset: 0 } = size else { return None };
        self.products.borrow().get(&base).cloned()
    }

    /// `size / by`; `None` if the division leaves a remainder. A fresh size if the result is not
    /// known.
    pub(super) fn quotient(&self, size: Size, by: Size) -> Option<Size> {
        match (size, by) {
            (size, by) if by.is(1) => Some(size),
            (size, by) if size == by => Some(Size::Known(1)),
            (Size::Known(0), _) => Some(Size::Known(0)),
            (Size::Known(size), Size::Known(by)) => {
                (by > 0 && size.is_multiple_of(by)).then(|| Size::Known(size / by))
            }
            (size, by) => {
                let parts = |size: Size| match size {
                    Size::Known(size) => (Vec::new(), size),
                    free => self.factors(free).unwrap_or_else(|| (vec![free], 1)), // small: one
                };
                let ((mut free, factor), (others, by)) = (parts(size), parts(by));
                let found =
                    others.iter().all(|other| match free.iter().position(|size| size == other) {
                        Some(at) => {
                            free.remove(at);
                            true
                        }
                        None => false,
                    });
                match found && by > 0 && factor.is_multiple_of(by) {
                    true => Some(self.product_of(free, factor / by)),
                    false => Some(self.fresh()),
                }
            }
        }
    }
}
