//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use kvwarden::cli::Cli;
use mimalloc::MiMalloc;

/// A request allocates some two hundred times; glibc's allocator takes an eighth of its instructions,
/// and leaves more between the buffers of open streams.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    kvwarden::panic::end_the_process();
    match Cli::parse().run() {
        Ok(code) => code,
        // `kvwarden status | head` is no error.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("kvwarden: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is_broken = |io: &std::io::Error| io.kind() == std::io::ErrorKind::BrokenPipe;
    error
        .chain()
        .any(|cause| cause.downcast_ref().is_some_and(is_broken))
}
