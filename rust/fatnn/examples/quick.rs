use fatnn::{codec::CodesLayout, conv::*, kernels, weights::*};
use std::time::Instant;
fn rnd(n: usize, seed: &mut u64) -> Vec<i8> {
    (0..n)
        .map(|_| {
            *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((*seed >> 40) % 3) as i8 - 1
        })
        .collect()
}
fn main() {
    fatnn::parallel::set_num_threads(1).unwrap();
    let mut s = 1;
    for kernel in kernels::detected() {
        for (m, k, n) in
            [(48, 4608, 512), (784, 1152, 128), (196, 2304, 256), (3136, 576, 64), (49, 4608, 512), (1000, 1024, 1024)]
        {
            let shape = WeightShape { out_channels: n, channels: k, kernel: [1, 1], groups: 1 };
            let w = PackedWeights::for_kernel(kernel, &rnd(n * k, &mut s), shape, false).unwrap();
            let lay = CodesLayout::new(k, 1).unwrap();
            let mut codes = vec![0u8; m * lay.pixel_bytes()];
            lay.pack(&rnd(m * k, &mut s), &mut codes).unwrap();
            let cs = ConvShape {
                batch: 1,
                input: [1, m],
                kernel: [1, 1],
                stride: [1, 1],
                padding: [0, 0],
                dilation: [1, 1],
            };
            let mut out = vec![0i32; m * n];
            let mut best = f64::MAX;
            let it = if kernel.name().contains("scalar") { 3 } else { 40 };
            for _ in 0..it {
                let t = Instant::now();
                conv2d_acc(&codes, &w, &cs, &mut out).unwrap();
                best = best.min(t.elapsed().as_secs_f64());
            }
            let mut bestc = f64::MAX;
            let t = vec![-3i32; n];
            let t2 = vec![5i32; n];
            let ol = CodesLayout::new(n, 1).unwrap();
            let mut oc = vec![0u8; m * ol.pixel_bytes()];
            for _ in 0..it {
                let t0 = Instant::now();
                conv2d_codes(&codes, &w, &cs, &fatnn::epilogue::ToCodes { low: &t, high: &t2, layout: ol }, &mut oc)
                    .unwrap();
                bestc = bestc.min(t0.elapsed().as_secs_f64());
            }
            let mut bestf = f64::MAX;
            let sc = vec![0.5f32; n];
            let mut of = vec![0f32; m * n];
            for _ in 0..it {
                let t0 = Instant::now();
                conv2d_float(
                    &codes,
                    &w,
                    &cs,
                    fatnn::epilogue::ToFloat { scale: Some(&sc), bias: Some(&sc), relu: true, channels: n },
                    None,
                    &mut of,
                )
                .unwrap();
                bestf = bestf.min(t0.elapsed().as_secs_f64());
            }
            print!("codes {:.1} float {:.1} acc ", (m * k * n) as f64 / bestc / 1e9, (m * k * n) as f64 / bestf / 1e9);
            println!("{:28} {m}x{k}x{n}: {:.1} GMAC/s", kernel.name(), (m * k * n) as f64 / best / 1e9);
        }
    }
}
