//! `fatnn-core bench`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use fatnn::net::{self, Array, Input, Network};
use fatnn::parallel;
use serde_json::json;

use crate::{Failure, table};
use fatnn::graph::report::{Row, rows};
use fatnn::graph::{Graph, Source};

/// The same values in [-1, 1) in every run, by splitmix64.
fn random(count: usize) -> Vec<f32> {
    let value = |i: u64| {
        let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count as u64).map(value).collect()
}

/// First quartile, median, third quartile.
fn quartiles(mut times: Vec<u64>) -> [f64; 3] {
    times.sort_unstable();
    [0.25, 0.5, 0.75].map(|q| {
        let at = q * (times.len() - 1) as f64;
        let (low, high) = (times[at.floor() as usize] as f64, times[at.ceil() as usize] as f64);
        low + (high - low) * at.fract()
    })
}

/// Times whole runs, and each node within them.
pub(crate) fn bench(
    file: &Path,
    batch: usize,
    threads: Option<usize>,
    rounds: usize,
    as_json: bool,
) -> Result<String, Failure> {
    if let Some(threads) = threads {
        parallel::set_num_threads(threads)?;
    }
    let network = Network::load(file)?;
    let shapes: Vec<Vec<usize>> = network
        .inputs()
        .map(|(_, shape)| std::iter::once(batch).chain(shape[1..].iter().copied()).collect())
        .collect();
    let size = |shape: &Vec<usize>| {
        shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|n| *n < 1 << 40)
    };
    let sizes = shapes.iter().map(size).collect::<Option<Vec<_>>>();
    let sizes = sizes.ok_or_else(|| {
        format!("--batch {batch}: inputs of the shapes {shapes:?} do not fit in memory")
    })?;
    let arrays: Vec<Vec<f32>> = sizes.into_iter().map(random).collect();
    // Ids and masks are zeros: every table has a first row.
    let largest = arrays.iter().map(Vec::len).max().unwrap_or(0);
    let (wide, narrow, mask) = (vec![0i64; largest], vec![0i32; largest], vec![0u8; largest]);
    let inputs: Vec<Array<'_>> = shapes
        .iter()
        .zip(&arrays)
        .zip(network.input_types())
        .map(|((shape, data), dtype)| match dtype {
            "int64" => Array::I64(shape, &wide[..data.len()]),
            "int32" => Array::I32(shape, &narrow[..data.len()]),
            "bool" => Array::Bool(shape, &mask[..data.len()]),
            _ => Input { shape, data, channels_last: false }.into(),
        })
        .collect();
    for _ in 0..rounds.div_ceil(5) {
        network.run(&inputs)?;
    }
    let mut whole = Vec::new();
    let mut order: Vec<String> = Vec::new();
    let mut nodes: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for _ in 0..rounds {
        let mut times = Vec::new();
        let start = Instant::now();
        network.run_observed(&inputs, &mut |value| {
            times.push((value.node.to_owned(), value.nanoseconds as u64))
        })?;
        whole.push(start.elapsed().as_nanos() as u64);
        if order.is_empty() {
            order = times.iter().map(|(node, _)| node.clone()).collect();
        }
        for (node, nanoseconds) in times {
            nodes.entry(node).or_default().push(nanoseconds);
        }
    }
    let (graph, tensors) = net::load(file)?;
    let described = rows(&Graph::parse(&graph, Source::Description)?, &tensors);
    let [low, median, high] = quartiles(whole).map(|ns| ns / 1e6);
    let threads = parallel::num_threads()?;
    let timed: Vec<_> = order
        .iter()
        .filter_map(|name| {
            let row = described.iter().find(|row| row.node == *name)?;
            Some((row, quartiles(nodes.remove(name)?)[1] / 1e6))
        })
        .collect();
    if as_json {
        let node = |(row, ms): &(&Row, f64)| {
            json!({
                "node": row.node, "layer": row.layer, "op": row.op, "milliseconds": ms,
            })
        };
        return Ok(serde_json::to_string_pretty(&json!({
            "inputs": shapes,
            "threads": threads,
            "rounds": rounds,
            "milliseconds": {"quartile1": low, "median": median, "quartile3": high},
            "nodes": timed.iter().map(node).collect::<Vec<_>>(),
        }))?);
    }
    let cells: Vec<[String; 5]> = timed
        .iter()
        .map(|(row, ms)| {
            let share = format!("{:.1}%", 100.0 * ms / median);
            [row.layer.clone(), row.op.clone(), table::shape(&row.shape), format!("{ms:.4}"), share]
        })
        .collect();
    let table =
        table::render(["node", "op", "shape at conversion", "ms", "share"], &cells, &[3, 4]);
    let inputs: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
    Ok(format!(
        "{table}\ninput {}, {threads} thread(s), {rounds} rounds: \
         median {median:.4} ms a run, quartiles {low:.4} and {high:.4} ms",
        inputs.join(", ")
    ))
}
