//! .
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("shim") => kvwarden::shim::run(),
        _ => ExitCode::FAILURE,
    }
}
