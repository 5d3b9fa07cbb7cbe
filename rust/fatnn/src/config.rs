//! The environment: the only place that reads it.
//!
//! | variable | values | effect |
//! | --- | --- | --- |
//! | `FATNN_ISA` | `scalar`, `avx2`, `avx512`, `neon` | caps the instruction sets that kernels may use |
//! | `FATNN_KERNEL` | `auto`, `popcount`, `matrix`, `table` | the kernel family that is preferred; every family but `matrix` keeps int8 layers off matrix units too |
//! | `FATNN_NUM_THREADS` | a positive integer | threads of the pool, where nothing else sets them |
//!
//! Read once, at first use; they are for benchmarks and bug reports, not for switching while a
//! program runs.

use std::sync::OnceLock;

use crate::cpu::Isa;
use crate::error::{Error, Result, bad_value};

/// More threads than this are refused: a typing error, not a machine.
pub const MAX_THREADS: usize = 4096;

/// Kernel families: they differ in the layout of both operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// FATNN's halved inner product over bit planes, 64 channels a word.
    Popcount,
    /// Int8 products on a matrix unit, of codes that are expanded from the same bit planes.
    Matrix,
    /// Products of groups of two channels, looked up by shuffles of bytes.
    Table,
    /// Int8 weights and activations as they are.
    Int8,
}

impl Family {
    /// Every family that runs codes: those that `FATNN_KERNEL` chooses among.
    pub const ALL: [Family; 3] = [Family::Popcount, Family::Matrix, Family::Table];

    /// The family of that name, among [`Family::ALL`].
    ///
    /// # Errors
    /// [`crate::Error::Value`] if there is no such name.
    pub fn from_name(name: &str) -> Result<Self> {
        match Family::ALL.into_iter().find(|family| family.name() == name) {
            Some(family) => Ok(family),
            None => bad_value(
                "kernel family",
                "\"popcount\", \"matrix\" or \"table\"",
                format!("{name:?}"),
            ),
        }
    }

    /// Name as in `FATNN_KERNEL`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Popcount => "popcount",
            Family::Matrix => "matrix",
            Family::Table => "table",
            Family::Int8 => "int8",
        }
    }
}

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
            v.parse().ok().filter(|n| (1..=MAX_THREADS).contains(n)).map(Some)
        })?,
    })
}

/// The configuration, read once.
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
