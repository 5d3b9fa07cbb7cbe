//! The command `fatnn`: inspects, runs and times a network that `fatnn_rs.save` or
//! [`fatnn::net::save`] wrote. No Python.
//!
//! Figures go to standard output, errors to standard error in one line; a command that fails exits
//! with 1, wrong usage with 2.

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

/// Whatever a command reports in its one line.
type Failure = Box<dyn std::error::Error>;

/// Ternary neural networks that really run in 2 bits: inspect, run and time a saved network.
#[derive(Parser)]
#[command(name = "fatnn", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what a saved network holds, node by node
    Inspect {
        /// A network that fatnn_rs.save wrote
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a saved network on an array and show each row's strongest output
    Run {
        /// A network that fatnn_rs.save wrote
        file: PathBuf,
        /// The input: .npy, float32, C order, shape (images, channels, ...)
        input: PathBuf,
        /// Write the output here, as .npy
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Time a saved network on random inputs: quartiles of a run, and the median of every node
    Bench {
        /// A network that fatnn_rs.save wrote
        file: PathBuf,
        /// Images in a run
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        batch: u32,
        /// Threads; FATNN_NUM_THREADS, else all CPUs, where it is not given
        #[arg(long)]
        threads: Option<usize>,
        /// Runs that are timed, after a fifth as many that are not
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
            // A reader that went away (`fatnn inspect ... | head`) is no failure.
            let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let line = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            let _ = writeln!(std::io::stderr().lock(), "fatnn: {line}");
            ExitCode::FAILURE
        }
    }
}
