//! `fatnn-core run`.

use std::path::Path;
use std::time::Instant;

use fatnn::net::{Input, Network};

use crate::{Failure, npy};

/// The number of rows whose argmax is printed.
const SHOWN: usize = 50;

/// Runs a network with one input and one output.
pub(crate) fn run(file: &Path, input: &Path, out: Option<&Path>) -> Result<String, Failure> {
    let network = Network::load(file)?;
    let (inputs, outputs) = (network.inputs().count(), network.outputs().count());
    if inputs != 1 || outputs != 1 {
        let path = file.display();
        return Err(format!(
            "{path}: `run` takes networks of one input and one output, this one has {inputs} \
             and {outputs}; call fatnn::net::Network from Rust, or fatnn_rs.load from Python"
        )
        .into());
    }
    let (shape, data) = npy::read(input)?;
    let start = Instant::now();
    let mut outputs = network.run(&[Input { shape: &shape, data: &data, channels_last: false }])?;
    let seconds = start.elapsed().as_secs_f64();
    let output = outputs.remove(0);
    let values = output.channels_first()?;
    let mut text = format!("output {:?} in {:.2} ms", output.shape, seconds * 1e3);
    if let Some(out) = out {
        npy::write(out, &output.shape, &values)?;
        text += &format!(", written to {}", out.display());
    }
    let row = values.len().checked_div(output.shape[0]).unwrap_or(0);
    if row > 0 {
        let strongest: Vec<String> =
            values.chunks_exact(row).take(SHOWN).map(|row| argmax(row).to_string()).collect();
        let more = if output.shape[0] > SHOWN { " ..." } else { "" };
        text += &format!("\nargmax {}{more}", strongest.join(" "));
    }
    Ok(text)
}

/// Index of the first largest value.
fn argmax(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, &x)| if x > row[best] { i } else { best })
}
