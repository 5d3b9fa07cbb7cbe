//! Environment variables. Only this module reads them.
//!
//! | variable | values | effect |
//! | --- | --- | --- |
//! | `FATNN_ISA` | `scalar`, `avx2`, `avx512`, `neon` | caps the instruction sets that kernels may use |
//! | `FATNN_KERNEL` | `auto`, `popcount`, `matrix`, `table`, `dot` | the preferred kernel family; all but `auto` and `matrix` also keep int8 layers off matrix units |
//! | `FATNN_NUM_THREADS` | a positive integer | the pool's threads, if the program does not set them |
//!
//! They are read once, at first use. They are for benchmarks and bug reports; a running program
//! cannot change them.

use std::sync::OnceLock;

use crate::cpu::Isa;
use crate::error::{Error, Result, bad_value};

/// Larger numbers of threads are rejected as typing errors.
pub const MAX_THREADS: usize = 4096;

/// Kernel families. They differ in how both operands are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// FATNN's halved inner product on bit planes, 64 channels per word.
    Popcount,
    /// Int8 products on a matrix unit. Codes are expanded from the same bit planes.
    Matrix,
    /// Byte shuffles look up products of groups of two channels.
    Table,
    /// Int8 weights and int8 activations.
    Int8,
    /// Int8 dot-product instructions of vector units, on codes expanded to bytes.
    Dot,
}

impl Family {
    /// The families that run codes, and that `FATNN_KERNEL` can name.
    pub const ALL: [Family; 4] = [Family::Popcount, Family::Matrix, Family::Table, Family::Dot];

    /// The family with that name, among [`Family::ALL`].
    ///
    /// # Errors
    /// [`crate::Error::Value`] if there is no such name.
    pub fn from_name(name: &str) -> Result<Self> {
        match Family::ALL.into_iter().find(|family| family.name() == name) {
            Some(family) => Ok(family),
            None => bad_value(
                "kernel family",
                "\"popcount\", \"matrix\", \"table\" or \"dot\"",
                format!("{name:?}"),
            ),
        }
    }

    /// Its name in `FATNN_KERNEL`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Popcount => "popcount",
            Family::Matrix => "matrix",
            Family::Table => "table",
            Family::Int8 => "int8",
            Family::Dot => "dot",
        }
    }
}

/// The environment variables' values.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Config {
    /// The highest instruction set allowed.
    pub isa: Option<Isa>,
    /// The kernel family to use if the CPU supports it.
    pub family: Option<Family>,
    /// The number of threads in the pool.
    pub threads: Option<usize>,
}

const ISA: (&str, &str) = ("FATNN_ISA", "scalar, avx2, avx512 or neon");
const KERNEL: (&str, &str) = ("FATNN_KERNEL", "auto, popcount, matrix, table or dot");
const THREADS: (&str, &str) = ("FATNN_NUM_THREADS", "a whole number from 1 to 4096");

/// Reads one variable: `None` if it is unset or empty. `parse` returns `None` for invalid values.
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
            v.parse().ok().filter(|n| (1..=MAX_THREADS).contains(n)).map(Some)
        })?,
    })
}

/// The configuration, read at the first call.
pub(crate) fn get() -> Result<Config> {
    static CONFIG: OnceLock<std::result::Result<Config, (&'static str, &'static str, String)>> =
        OnceLock::new();
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
