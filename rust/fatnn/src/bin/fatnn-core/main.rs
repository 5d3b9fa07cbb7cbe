//! The command `fatnn-core`: inspects, runs and times a saved network (`fatnn_rs.save` or
//! [`fatnn::net::save`]) without Python.
//!
//! Results go to standard output, errors to standard error in one line. The exit code is 1 if a
//! command fails and 2 for wrong usage.

#![deny(unsafe_code)]

mod bench;
mod inspect;
mod npy;
mod run;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Any error; its text is printed in one line.
type Failure = Box<dyn std::error::Error>;

/// Ternary neural networks that run in 2 bits: inspect, run and time a saved network.
#[derive(Parser)]
#[command(name = "fatnn-core", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the nodes of a saved network
    Inspect {
        /// A network that fatnn_rs.save wrote
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a saved network on an array and show the argmax of each row
    Run {
        /// A network that fatnn_rs.save wrote
        file: PathBuf,
        /// The input: .npy, float32, C order, shape (images, channels, ...)
        input: PathBuf,
        /// Write the output here, as .npy
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Time a saved network on random inputs: quartiles of a run, and the median of each node
    Bench {
        /// A network that fatnn_rs.save wrote
        file: PathBuf,
        /// Images per run
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        batch: u32,
        /// Number of threads [default: FATNN_NUM_THREADS, else all CPUs]
        #[arg(long)]
        threads: Option<usize>,
        /// Timed runs; a fifth as many warm-up runs come first
        #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(3..))]
        rounds: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Inspect { file, json } => inspect::inspect(&file, json),
        Command::Run { file, input, out } => run::run(&file, &input, out.as_deref()),
        Command::Bench { file, batch, threads, rounds, json } => {
            bench::bench(&file, batch as usize, threads, rounds as usize, json)
        }
    };
    match done {
        Ok(text) => {
            // A closed pipe (`fatnn-core inspect ... | head`) is not an error.
            let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let line = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            let _ = writeln!(std::io::stderr().lock(), "fatnn-core: {line}");
            ExitCode::FAILURE
        }
    }
}
