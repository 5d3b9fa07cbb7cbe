//! The environment: the only place that reads it.
//!
//! | variable | values | effect |
//! | --- | --- | --- |
//! | `FATNN_ISA` | `scalar`, `avx2`, `avx512`, `neon` | caps the instruction sets that kernels may use |
//! | `FATNN_KERNEL` | `auto`, `popcount`, `matrix`, `table` | the kernel family that is preferred; every family but `matrix` keeps int8 layers off matrix units too |
//! | `FATNN_NUM_THREADS` | a positive integer | threads of the pool, where nothing else sets them |
//!
//! Read once, at first use; they are for benchmarks and bug reports, not for switching while a program runs.

use std::sync::OnceLock;

use crate::cpu::Isa;
use crate::error::{Error, Result};
use crate::kernels::Family;

/// The environment as this process found it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Config {
    /// Highest instruction set allowed.
    pub isa: Option<Isa>,
    /// The kernel family to be used, where the CPU has it.
    pub family: Option<Family>,
    /// Size of the thread pool.
    pub threads: Option<usize>,
}

const ISA: (&str, &str) = ("FATNN_ISA", "scalar, avx2, avx512 or neon");
const KERNEL: (&str, &str) = ("FATNN_KERNEL", "auto, popcount, matrix or table");
const THREADS: (&str, &str) = ("FATNN_NUM_THREADS", "a whole number of at least 1");

fn variable<T>(
    (name, expected): (&'static str, &'static str),
    parse: impl Fn(&str) -> Option<Option<T>>,
) -> Result<Option<T>> {
    match std::env::var_os(name) {
        None => Ok(None),
        Some(raw) => {
            let got = raw.to_string_lossy().into_owned();
            match got.trim() {
                "" => Ok(None),
                value => parse(value).ok_or(Error::Environment { name, expected, got }),
            }
        }
    }
}

fn read() -> Result<Config> {
    Ok(Config {
        isa: variable(ISA, |v| Isa::from_name(v).map(Some))?,
        family: variable(KERNEL, |v| match v {
            "auto" => Some(None),
            name => Family::from_name(name).ok().map(Some),
        })?,
        threads: variable(THREADS, |v| {
            v.parse().ok().filter(|n| (1..=crate::parallel::MAX_THREADS).contains(n)).map(Some)
        })?,
    })
}

/// The configuration, read once.
pub(crate) fn get() -> Result<Config> {
    static CONFIG: OnceLock<std::result::Result<Config, (&'static str, &'static str, String)>> = OnceLock::new();
    let cached = CONFIG.get_or_init(|| {
        read().map_err(|e| match e {
            Error::Environment { name, expected, got } => (name, expected, got),
            other => ("FATNN_*", "a readable environment", other.to_string()),
        })
    });
    match cached {
        Ok(config) => Ok(*config),
        Err((name, expected, got)) => Err(Error::Environment { name, expected, got: got.clone() }),
    }
}
