//! The number of windows along one axis, by PyTorch's rules.

/// A window's parameters on one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AxisParams {
    pub kernel: usize,
    pub stride: usize,
    /// Elements added on each side.
    pub padding: usize,
    pub dilation: usize,
}

impl AxisParams {
    /// Elements from a window's first tap to its last, both included; 0 for a kernel of 0.
    pub fn reach(self) -> i128 {
        let steps = (self.kernel as i128 - 1).saturating_mul(self.dilation as i128);
        if self.kernel == 0 { 0 } else { steps.saturating_add(1) }
    }

    /// The padded size minus one window; negative if no window fits.
    fn rest(self, size: usize) -> i128 {
        (size as i128 + 2 * self.padding as i128).saturating_sub(self.reach())
    }

    /// Windows along `size` elements: `⌊(size + 2·padding - dilation·(kernel - 1) - 1) / stride⌋ +
    /// 1`. `None` if no window fits, or if kernel, stride or dilation is 0.
    pub fn count(self, size: usize) -> Option<usize> {
        let rest = self.rest(size);
        if self.kernel == 0 || self.stride == 0 || self.dilation == 0 || rest < 0 {
            return None;
        }
        usize::try_from(rest / self.stride as i128 + 1).ok()
    }

    /// As [`AxisParams::count`] with PyTorch's `ceil_mode`: the last window may reach over the end,
    /// if it starts inside the input or the padding before it.
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
    fn counts_equal_windows_placed_one_by_one() {
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
                // PyTorch rejects a padding of more than half a kernel.
                if 2 * padding > kernel {
                    continue;
                }
                // One more window for left-over elements, if it starts before the padding at the
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
    fn extreme_parameters_do_not_panic() {
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
