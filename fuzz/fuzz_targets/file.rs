//! Reads arbitrary bytes as a file, and checks the graph if there is one. Nothing may panic.
#![no_main]

use fatnn::graph::{Graph, Source, check, file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok((text, tensors)) = file::read(bytes) else { return };
    if let Ok(graph) = Graph::parse(&text, Source::File) {
        let _ = check::check(&graph, &tensors, Source::File);
    }
});
