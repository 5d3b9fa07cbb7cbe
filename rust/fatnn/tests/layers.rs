//! Which module may import which: each only lower ones, so that there are no cycles.
//!
//! The test reads the `crate::…` paths in the sources, except in comments and tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The modules, lowest first, and what each may import. Modules in one row may import each other.
const LAYERS: &[(&[&str], &[&str])] = &[
    (&["error"], &[]),
    (&["memory"], &["error"]),
    (&["limits"], &["error"]),
    (&["window"], &[]),
    (&["transpose"], &[]),
    (&["dtype", "codec"], &["error"]),
    (&["cpu", "config"], &["error"]),
    (&["scalar"], &["error"]),
    (&["epilogue"], &["codec", "error", "memory", "scalar"]),
    (
        &["kernels"],
        &["codec", "config", "cpu", "dtype", "epilogue", "error", "memory", "scalar", "transpose"],
    ),
    (&["parallel"], &["config", "error", "kernels", "memory"]),
    (&["quantize"], &["codec", "epilogue", "error", "kernels", "parallel", "transpose"]),
    (&["steps"], &["error", "kernels", "memory", "parallel"]),
    (&["pack"], &["codec", "dtype", "error", "kernels", "memory"]),
    (
        &["conv"],
        &[
            "codec",
            "epilogue",
            "error",
            "kernels",
            "memory",
            "pack",
            "parallel",
            "quantize",
            "transpose",
            "window",
        ],
    ),
    (&["pool"], &["codec", "conv", "error", "memory", "parallel"]),
    (&["reference"], &["codec", "conv", "pack", "quantize"]),
    // A graph is data and does not depend on the CPU.
    (&["graph"], &["codec", "dtype", "error", "limits", "memory", "scalar", "window"]),
    (
        &["engine"],
        &[
            "codec",
            "conv",
            "dtype",
            "epilogue",
            "error",
            "graph",
            "kernels",
            "limits",
            "memory",
            "pack",
            "parallel",
            "pool",
            "quantize",
            "scalar",
            "transpose",
            "window",
        ],
    ),
    (&["net"], &["engine", "graph", "limits"]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules that a source file names after `crate::`.
fn imports(text: &str) -> BTreeSet<String> {
    let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    let code: Vec<&str> = lines.map(|line| line.split("//").next().unwrap_or(line)).collect();
    let code = code.join("\n");
    let mut found = BTreeSet::new();
    let name = |text: &str| {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
    };
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(name(rest));
            continue;
        };
        // All names in braces, at the outermost depth.
        let (mut depth, mut start) = (0, true);
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && depth == 0 && c.is_alphabetic() => {
                    found.insert(name(&group[i..]));
                    start = false;
                }
                _ => (),
            }
        }
    }
    // `crate::Error` and `crate::Result` are not modules.
    found.retain(|name| name.starts_with(char::is_lowercase));
    found
}

/// The modules that a module may import.
fn allowed(module: &str) -> Option<BTreeSet<&'static str>> {
    let (parts, below) = LAYERS.iter().find(|(parts, _)| parts.contains(&module))?;
    Some(parts.iter().chain(*below).copied().collect())
}

/// The imports that are not allowed, for a message.
fn violations(file: &str, module: &str, text: &str) -> Vec<String> {
    let Some(allowed) = allowed(module) else {
        return vec![format!("{file}: module {module} is in no layer")];
    };
    let wrong = imports(text).into_iter().filter(|import| !allowed.contains(import.as_str()));
    wrong.map(|import| format!("{file}: {module} must not import {import}")).collect()
}

#[test]
fn modules_only_import_lower_ones() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for file in &files {
        let inside = file.strip_prefix(&root).unwrap();
        let first = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if ["lib", "bin"].contains(&first) {
            continue;
        }
        *seen.entry(first.to_owned()).or_default() += 1;
        wrong.extend(violations(
            &inside.display().to_string(),
            first,
            &std::fs::read_to_string(file).unwrap(),
        ));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let listed: BTreeSet<&str> = LAYERS.iter().flat_map(|(parts, _)| *parts).copied().collect();
    assert!(seen.keys().map(String::as_str).eq(listed), "every module is in one layer: {seen:?}");
}

#[test]
fn the_list_of_layers_has_no_cycle() {
    let mut below: BTreeSet<&str> = BTreeSet::new();
    for (parts, imports) in LAYERS {
        for import in *imports {
            assert!(below.contains(import), "{parts:?} imports {import}, which is not below it");
        }
        for part in *parts {
            assert!(below.insert(part), "{part} is in two layers");
        }
    }
}

#[test]
fn a_forbidden_import_is_found() {
    assert_eq!(violations("f.rs", "conv", "use crate::net::{Elementwise, PoolStep};").len(), 1);
    assert_eq!(
        violations("f.rs", "kernels", "use crate::{\n    engine::{a, b},\n    memory,\n};").len(),
        1
    );
    assert_eq!(violations("f.rs", "graph", "fn f() { crate::kernels::best(); }").len(), 1);
    assert_eq!(violations("f.rs", "other", "").len(), 1);
    let fine =
        "//! [`crate::net`]\nuse crate::{error::Result, memory};\n#[cfg(test)]\nuse crate::engine;";
    assert_eq!(violations("f.rs", "pack", fine), [""; 0]);
}
