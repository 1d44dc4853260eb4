//! The targets: their input is the bytes that the fuzzer makes up.

pub mod cursor;
pub mod encode;
pub mod frame;
pub mod keys;
pub mod pattern;
pub mod token;

/// Panics if what it checks goes wrong with this input.
pub type Target = fn(&[u8]);

/// All of them, by the names of their programs and of the folders of their seeds.
pub const ALL: [(&str, Target); 6] = [
    ("cursor", cursor::check),
    ("encode", encode::check),
    ("frame", frame::check),
    ("keys", keys::check),
    ("pattern", pattern::check),
    ("token", token::check),
];
