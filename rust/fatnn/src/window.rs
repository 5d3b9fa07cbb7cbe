//! How many windows fit on one axis of a map: PyTorch's rules, in one place.

/// The numbers of a window on one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AxisParams {
    pub kernel: usize,
    pub stride: usize,
    /// Elements added on each side.
    pub padding: usize,
    pub dilation: usize,
}

impl AxisParams {
    /// From the first tap of a window to the last, both counted; 0 for a kernel of 0.
    pub fn reach(self) -> i128 {
        let steps = (self.kernel as i128 - 1).saturating_mul(self.dilation as i128);
        if self.kernel == 0 { 0 } else { steps.saturating_add(1) }
    }

    /// What a padded map of `size` has beyond one window; negative where the window does not fit.
    fn rest(self, size: usize) -> i128 {
        (size as i128 + 2 * self.padding as i128).saturating_sub(self.reach())
    }

    /// Windows on a map of `size`: `⌊(size + 2·padding - dilation·(kernel - 1) - 1) / stride⌋ + 1`.
    /// `None` where not one fits, or a number that has to be at least 1 is 0.
    pub fn count(self, size: usize) -> Option<usize> {
        let rest = self.rest(size);
        if self.kernel == 0 || self.stride == 0 || self.dilation == 0 || rest < 0 {
            return None;
        }
        usize::try_from(rest / self.stride as i128 + 1).ok()
    }

    /// As [`AxisParams::count`] by PyTorch's `ceil_mode`: the last window may reach over the edge,
    /// as long as it starts inside the map or the padding before it.
    pub fn count_ceil(self, size: usize) -> Option<usize> {
        if self.kernel == 0 || self.stride == 0 || self.dilation == 0 {
            return None;
        }
        let stride = self.stride as i128;
        let last = self.rest(size).saturating_add(stride - 1).div_euclid(stride);
        let starts_inside = last.saturating_mul(stride) < size as i128 + self.padding as i128;
        usize::try_from(if starts_inside { last } else { last - 1 } + 1)
            .ok()
            .filter(|count| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_windows_laid_one_by_one() {
        for size in 0..12 {
            for (kernel, stride, padding, dilation) in (1..5).flat_map(|k| {
                (1..4)
                    .flat_map(move |s| (0..3).flat_map(move |p| (1..3).map(move |d| (k, s, p, d))))
            }) {
                let params = AxisParams { kernel, stride, padding, dilation };
                let (reach, padded) = (dilation * (kernel - 1) + 1, size + 2 * padding);
                let fitting =
                    (0..).step_by(stride).take_while(|start| start + reach <= padded).count();
                assert_eq!(
                    params.count(size),
                    (fitting > 0).then_some(fitting),
                    "{params:?} on {size}"
                );
                // PyTorch refuses more padding than half a kernel.
                if 2 * padding > kernel {
                    continue;
                }
                // One more where elements are left over, if it starts before the padding at the
                // end.
                let starts =
                    |start: &usize| *start < size + padding && start + reach < padded + stride;
                let ceil = (0..).step_by(stride).take_while(starts).count();
                assert_eq!(
                    params.count_ceil(size),
                    (ceil > 0).then_some(ceil),
                    "{params:?} on {size}"
                );
            }
        }
    }

    #[test]
    fn any_numbers_are_numbers() {
        let numbers = [0, 1, 2, usize::MAX / 2, usize::MAX];
        for kernel in numbers {
            for stride in numbers {
                for padding in numbers {
                    for dilation in numbers {
                        let params = AxisParams { kernel, stride, padding, dilation };
                        for size in numbers {
                            let _ = (params.count(size), params.count_ceil(size));
                        }
                    }
                }
            }
        }
    }
}
