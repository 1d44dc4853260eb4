//! The inputs from which the fuzzer starts, and those that it once found, are without a panic.

use std::fs;
use std::path::Path;

use herald_fuzz::targets;

#[test]
fn each_target_has_seeds_and_holds_for_them() {
    for (name, check) in targets::ALL {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("seeds")
            .join(name);
        let files = fs::read_dir(folder).expect("a target has a folder of seeds");
        let inputs: Vec<Vec<u8>> = files
            .map(|file| fs::read(file.unwrap().path()).unwrap())
            .collect();
        assert!(!inputs.is_empty(), "{name}");
        for input in inputs {
            check(&input);
        }
    }
}

#[test]
fn each_target_is_a_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz_targets");
    let mut programs: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|file| file.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    programs.sort();
    assert_eq!(programs, targets::ALL.map(|(name, _)| name));
}
