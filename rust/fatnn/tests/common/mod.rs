//! Shared by the integration tests: random inputs, and a convolution that is compared with the
//! reference.
#![allow(dead_code, reason = "each test binary uses a different part")]

pub mod example;
pub mod graphs;
pub mod int8;

use std::sync::{Mutex, MutexGuard, PoisonError};

use fatnn::codec::{Act, CodesLayout, Coding, WeightKind};
use fatnn::conv::{ConvShape, conv2d_acc, conv2d_codes, conv2d_float};
use fatnn::epilogue::{Dequantize, Requantize};
use fatnn::kernels::{Kernel, Operands};
use fatnn::pack::{PackedWeights, WeightShape};
use fatnn::reference;

/// Sets the number of threads. Only one test at a time can hold it; dropping it restores the former
/// number, also after a panic.
pub struct ThreadCount {
    former: usize,
    _lock: MutexGuard<'static, ()>,
}

impl ThreadCount {
    pub fn lock() -> Self {
        static LOCK: Mutex<()> = Mutex::new(());
        let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        ThreadCount { former: fatnn::parallel::num_threads().unwrap(), _lock: lock }
    }

    pub fn set(&self, threads: usize) {
        fatnn::parallel::set_num_threads(threads).unwrap();
    }
}

impl Drop for ThreadCount {
    fn drop(&mut self) {
        self.set(self.former);
    }
}

/// The configuration of property tests.
pub fn proptest_config(cases: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config { cases, failure_persistence: None, ..Default::default() }
}

/// A small generator, so that inputs do not change with a library's version.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    /// A number in -1..1.
    pub fn float(&mut self) -> f32 {
        self.next() as f32 / (1u32 << 30) as f32 - 1.0
    }
}

/// Values that repeat with a prime period, so that no two words, rows or panels are equal.
/// Otherwise a test could miss that two blocks were swapped.
pub fn values(of: &[i8], n: usize, seed: u64) -> Vec<i8> {
    let mut random = Random(seed);
    let period: Vec<i8> = (0..251).map(|_| of[random.below(of.len())]).collect();
    (0..n).map(|i| period[i % 251]).collect()
}

/// Ternary codes by [`values`].
pub fn codes(n: usize, seed: u64) -> Vec<i8> {
    values(&[-1, 0, 1], n, seed)
}

/// All pairs of operand types.
pub fn all_operands() -> impl Iterator<Item = Operands> {
    Act::ALL.into_iter().flat_map(|act| WeightKind::ALL.map(|weights| Operands { act, weights }))
}

/// A pair of operand types by number. Ternary weights are frequent, because most kernels run them.
pub fn operands(number: usize) -> Operands {
    let act = [Act::Full, Act::Half, Act::Uint2, Act::Half, Act::Binary, Act::Uint2, Act::Half]
        [number % 7];
    let kinds = [
        WeightKind::Ternary,
        WeightKind::TwoBit,
        WeightKind::Ternary,
        WeightKind::Binary,
        WeightKind::Ternary,
    ];
    Operands { act, weights: kinds[number % 5] }
}

/// A convolution to test. `channels` and `out_channels` are per group.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub batch: usize,
    pub input: [usize; 2],
    pub channels: usize,
    pub out_channels: usize,
    pub groups: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub padding: [usize; 2],
    pub dilation: [usize; 2],
    pub operands: Operands,
}

impl Case {
    /// A matrix product of `m × k` by `k × n`.
    pub fn product(m: usize, k: usize, n: usize, operands: Operands) -> Self {
        Case {
            batch: 1,
            input: [1, m],
            channels: k,
            out_channels: n,
            groups: 1,
            kernel: [1, 1],
            stride: [1, 1],
            padding: [0, 0],
            dilation: [1, 1],
            operands,
        }
    }

    pub fn shape(&self) -> ConvShape {
        ConvShape {
            batch: self.batch,
            input: self.input,
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
        }
    }

    pub fn weights(&self) -> WeightShape {
        WeightShape {
            out_channels: self.out_channels * self.groups,
            channels: self.channels * self.groups,
            kernel: self.kernel,
            groups: self.groups,
        }
    }

    pub fn layout(&self) -> CodesLayout {
        CodesLayout::new(self.channels * self.groups, self.groups)
            .unwrap()
            .with(self.operands.act.coding())
    }

    /// Codes of the input.
    pub fn codes(&self, seed: u64) -> Vec<i8> {
        values(self.operands.act.codes(), self.pixels() * self.weights().channels, seed)
    }

    /// Codes of the weights.
    pub fn weight_codes(&self, seed: u64) -> Vec<i8> {
        let mut weights = values(self.operands.weights.codes(), self.weights().len(), seed);
        // Makes sure that the weights are not of a narrower kind.
        weights[0] = match self.operands.weights {
            WeightKind::Ternary => 0,
            WeightKind::Binary => -1,
            WeightKind::TwoBit => 3,
        };
        weights
    }

    pub fn pixels(&self) -> usize {
        self.batch * self.input[0] * self.input[1]
    }

    pub fn outputs(&self) -> usize {
        let [h, w] = self.shape().output().unwrap();
        self.batch * h * w
    }
}

/// Ternary weights, and activations of type `act`.
pub fn ternary(act: Act) -> Operands {
    Operands { act, weights: WeightKind::Ternary }
}

/// Packs `codes`.
pub fn pack(layout: CodesLayout, codes: &[i8]) -> Vec<u8> {
    let mut packed = vec![0xA5; codes.len() / layout.channels() * layout.pixel_bytes()];
    layout.pack(codes, &mut packed).unwrap();
    packed
}

/// Accumulators by `kernel`.
pub fn accumulators(kernel: &'static dyn Kernel, case: &Case, x: &[i8], w: &[i8]) -> Vec<i32> {
    let weights = PackedWeights::for_kernel(kernel, w, case.weights(), case.operands).unwrap();
    let mut acc = vec![i32::MIN; case.outputs() * case.weights().out_channels];
    conv2d_acc(&pack(case.layout(), x), &weights, &case.shape(), &mut acc).unwrap();
    acc
}

/// Whether tests run at full length (`make test-long`).
pub fn long() -> bool {
    std::env::var_os("FATNN_TEST_LONG").is_some()
}

/// Runs `case` on all `kernels` that support it, with all three epilogues, and compares every bit
/// with the reference.
pub fn check(kernels: &[&'static dyn Kernel], case: &Case, seed: u64) {
    check_then(kernels, case, seed, &mut |run| run());
}

/// As [`check`], once per number of threads; the reference is computed only once.
pub fn check_with_threads(
    kernels: &[&'static dyn Kernel],
    case: &Case,
    seed: u64,
    threads: &[usize],
) {
    check_then(kernels, case, seed, &mut |run| {
        let count = ThreadCount::lock();
        for &n in threads {
            count.set(n);
            run();
        }
    });
}

fn check_then(
    kernels: &[&'static dyn Kernel],
    case: &Case,
    seed: u64,
    repeat: &mut dyn FnMut(&mut dyn FnMut()),
) {
    let n = case.weights().out_channels;
    let (x, w) = (case.codes(seed), case.weight_codes(seed ^ 0x5555));
    let packed = pack(case.layout(), &x);
    let expected = reference::conv2d_acc(&x, &w, case.weights(), case.operands.act, &case.shape());
    let mut random = Random(seed ^ 0xAAAA);
    // Thresholds near the accumulators, so that all codes occur.
    let low: Vec<i32> = (0..n).map(|_| random.below(7) as i32 - 4).collect();
    let high: Vec<i32> = low.iter().map(|low| low + random.below(6) as i32).collect();
    let third: Vec<i32> = high.iter().map(|high| high + random.below(6) as i32).collect();
    let scale: Vec<f32> = (0..n).map(|_| random.float()).collect();
    let bias: Vec<f32> = (0..n).map(|_| random.float() * 3.0).collect();
    let residual: Vec<f32> = (0..expected.len()).map(|_| random.float() * 9.0).collect();
    let out_groups =
        *[1, 2, 3, case.groups].iter().filter(|&g| n.is_multiple_of(*g)).max().unwrap();
    let out_layout = CodesLayout::new(n, out_groups).unwrap();
    let all = [&low[..], &high, &third].concat();
    let codings = [Coding::Ternary, Coding::Uint2].map(|coding| {
        let thresholds = &all[..n * coding.thresholds()];
        let layout = out_layout.with(coding);
        (thresholds, layout, pack(layout, &reference::to_codes(&expected, thresholds, n, coding)))
    });
    let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
    let forms = (0..16).map(|form| {
        let on = |bit: usize| form >> bit & 1 == 1;
        let (scale, bias) = (on(0).then_some(&scale[..]), on(1).then_some(&bias[..]));
        let (residual, relu) = (on(2).then_some(&residual[..]), on(3));
        let y = bits(&reference::to_float(&expected, n, scale, bias, residual, relu));
        (Dequantize { scale, bias, relu, channels: n, codes: None }, residual, y)
    });
    let forms: Vec<_> = forms.collect();
    for &kernel in kernels.iter().filter(|kernel| case.operands.supported_by(**kernel)) {
        let what = || {
            format!(
                "{} on {case:?}, {} threads",
                kernel.name(),
                fatnn::parallel::num_threads().unwrap()
            )
        };
        let weights = PackedWeights::for_kernel(kernel, &w, case.weights(), case.operands).unwrap();
        // Borrow the blob, unless that would select another kernel with the same layout.
        let weights = match PackedWeights::from_bytes(weights.as_bytes()) {
            Ok(borrowed) if borrowed.kernel().name() == kernel.name() => borrowed,
            _ => weights.clone(),
        };
        let mut repeated = false;
        repeat(&mut || {
            let mut acc = vec![i32::MIN; expected.len()];
            conv2d_acc(&packed, &weights, &case.shape(), &mut acc).unwrap();
            assert_eq!(acc, expected, "accumulators of {}", what());

            for (thresholds, layout, expected) in &codings {
                let mut codes = vec![0xA5; expected.len()];
                let to = Requantize { thresholds, layout: *layout };
                conv2d_codes(&packed, &weights, &case.shape(), &to, &mut codes).unwrap();
                assert_eq!(&codes, expected, "codes in {layout:?} of {}", what());
            }

            // After the first number of threads, a few forms are enough.
            let few = std::mem::replace(&mut repeated, true) && !long();
            for (form, (to, residual, expected)) in forms.iter().enumerate() {
                if few && ![0, 3, 15].contains(&form) {
                    continue;
                }
                let mut y = vec![f32::NAN; acc.len()];
                let to = Dequantize { codes: None, ..*to };
                conv2d_float(&packed, &weights, &case.shape(), to, *residual, &mut y).unwrap();
                assert_eq!(&bits(&y), expected, "floats (form {form:04b}) of {}", what());
            }
        });
    }
}
