//! A panic ends the process.
//!
//! Release builds abort anyway. In others a panicked actor or worker would die alone, and the process
//! would live on without it: half dead, and untested for what it does in earnest. Engines go on, and
//! whoever starts next adopts them.

/// From now on a panic on any thread is told as usual, and then ends the process by SIGABRT.
pub fn end_the_process() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Command};

    use nix::sys::signal::Signal;

    /// Set in the process that is to die.
    const VICTIM: &str = "KVWARDEN_TEST_PANIC";

    #[test]
    fn panic_on_any_thread_ends_the_process() {
        if std::env::var_os(VICTIM).is_some() {
            super::end_the_process();
            let _ = std::thread::spawn(|| panic!("of an actor")).join();
            // The thread died alone.
            std::process::exit(0);
        }
        let me = std::env::current_exe().unwrap();
        let name = "panic::tests::panic_on_any_thread_ends_the_process";
        let victim = Command::new(me)
            .args(["--exact", name, "--nocapture"])
            .env(VICTIM, "1")
            .output()
            .unwrap();
        assert_eq!(victim.status.signal(), Some(Signal::SIGABRT as i32));
        let said = String::from_utf8_lossy(&victim.stderr);
        assert!(said.contains("of an actor"), "{said}");
    }
}
