//! Is there a place for what is downloaded, and a private one for sockets and logs?

use std::{os::unix::ffi::OsStrExt as _, path::Path};

use super::{Check, Needs, machine::Directory};
use crate::terminal;

/// `sun_path` holds 108 bytes, the last a NUL (unix(7)).
const SOCKET_PATH_BYTES: usize = 107;

/// Shims' sockets are called so, after eight digits of their token.
const SOCKET_NAME: &str = "/01234567.sock";

const DATA: &str = "data directory";
const SPACE: &str = "free space";
const STATE: &str = "state directory";
const SOCKET: &str = "socket path";

const MOVE_DATA: &str = "set KVWARDEN_DATA_DIR to a directory of yours";
const MOVE_STATE: &str = "set KVWARDEN_STATE_DIR to a directory of yours";

pub(super) fn data(dir: &Directory) -> Check {
    let path = dir.path.display();
    if let Err(why) = &dir.writable {
        return Check::problem(DATA, format!("cannot write to {path} ({why})"), MOVE_DATA);
    }
    if dir.forbids_programs {
        return Check::problem(
            DATA,
            format!("{path} is on a file system that runs no programs (noexec)"),
            "set KVWARDEN_DATA_DIR to a directory on another one",
        );
    }
    Check::ok(DATA, format!("{path}{}", will_be_made(dir)))
}

pub(super) fn space(path: &Path, free: Option<u64>, missing: &Needs) -> Check {
    let Some(free) = free else {
        let finding = "the file system does not say how much is free";
        return Check::not_applicable(SPACE, finding);
    };
    let is_free = format!("{} free", terminal::bytes(free));
    let fix = format!(
        "free some of {}, or set KVWARDEN_DATA_DIR to another disk",
        path.display()
    );
    if missing.are_known {
        let needed: u64 = missing.recipes.iter().map(|recipe| recipe.bytes).sum();
        return match needed {
            0 => Check::ok(
                SPACE,
                format!("{is_free}; every engine needed is installed"),
            ),
            needed if needed > free => {
                let needs = format!("{is_free}, {} needed for engines", terminal::bytes(needed));
                Check::problem(SPACE, needs, fix)
            }
            needed => Check::ok(
                SPACE,
                format!("{is_free}, {} needed for engines", terminal::bytes(needed)),
            ),
        };
    }
    let too_large: Vec<_> = missing
        .recipes
        .iter()
        .filter(|recipe| recipe.bytes > free)
        .map(|recipe| format!("{} ({})", recipe.name, terminal::bytes(recipe.bytes)))
        .collect();
    if too_large.is_empty() {
        return Check::ok(SPACE, format!("{is_free}, enough for any one engine"));
    }
    let finding = format!("{is_free}: too little for {}", too_large.join(", "));
    Check::warning(SPACE, finding, fix)
}

pub(super) fn state(dir: &Directory, user: u32) -> Check {
    let path = dir.path.display();
    if let Err(why) = &dir.writable {
        let finding = format!("cannot write to {path} ({why})");
        return Check::problem(STATE, finding, MOVE_STATE);
    }
    match dir.owner_and_mode {
        // Its permissions have to be set, and only its owner can; root can always.
        Some((owner, _)) if owner != user && user != 0 => Check::problem(
            STATE,
            format!("{path} belongs to user {owner}, and this is user {user}"),
            MOVE_STATE,
        ),
        Some((_, mode)) if mode & 0o077 != 0 => Check::warning(
            STATE,
            format!("{path} is open to other users (mode {mode:o}); `kvwarden serve` closes it"),
            format!("chmod 700 {path}"),
        ),
        Some(_) => Check::ok(STATE, format!("{path}, private")),
        None => Check::ok(STATE, format!("{path}{}", will_be_made(dir))),
    }
}

pub(super) fn socket_path(run: &Path) -> Check {
    let length = run.as_os_str().as_bytes().len() + SOCKET_NAME.len();
    if length > SOCKET_PATH_BYTES {
        return Check::problem(
            SOCKET,
            format!(
                "sockets in {} would have paths of {length} bytes; the system ends at {SOCKET_PATH_BYTES}",
                run.display()
            ),
            "set KVWARDEN_STATE_DIR to a shorter path, such as /run/kvwarden",
        );
    }
    Check::ok(SOCKET, format!("{length} of {SOCKET_PATH_BYTES} bytes"))
}

fn will_be_made(dir: &Directory) -> &'static str {
    match dir.owner_and_mode {
        Some(_) => "",
        None => " (will be made)",
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{known, unknown},
        *,
    };
    use crate::cli::doctor::State;

    const GIB: u64 = 1 << 30;

    fn dir(owner_and_mode: Option<(u32, u32)>) -> Directory {
        Directory {
            path: "/d".into(),
            owner_and_mode,
            writable: Ok(()),
            free: Some(GIB),
            forbids_programs: false,
        }
    }

    fn free(free: u64, missing: &Needs) -> State {
        space(Path::new("/d"), Some(free), missing).state
    }

    #[test]
    fn data_directory_must_be_writable_and_run_programs() {
        assert_eq!(data(&dir(None)), Check::ok(DATA, "/d (will be made)"));
        let closed = Directory {
            writable: Err("EROFS".to_owned()),
            ..dir(None)
        };
        assert_eq!(data(&closed).state, State::Problem);
        let noexec = Directory {
            forbids_programs: true,
            ..dir(None)
        };
        assert!(data(&noexec).finding.contains("noexec"));
    }

    #[test]
    fn space_is_held_against_the_engines_that_are_missing() {
        assert_eq!(free(GIB, &known(&["vllm"])), State::Problem);
        assert_eq!(free(10 * GIB, &known(&["vllm"])), State::Ok);
        assert_eq!(free(10 * GIB, &known(&["vllm", "sglang"])), State::Problem);
        assert_eq!(free(0, &known(&[])), State::Ok);
        assert_eq!(free(GIB, &unknown()), State::Warning);
        assert_eq!(free(100 * GIB, &unknown()), State::Ok);
    }

    #[test]
    fn state_directory_belongs_to_its_user_alone() {
        assert_eq!(state(&dir(Some((7, 0o700))), 7).state, State::Ok);
        assert_eq!(state(&dir(Some((7, 0o755))), 7).state, State::Warning);
        assert_eq!(state(&dir(Some((8, 0o700))), 7).state, State::Problem);
        assert_eq!(state(&dir(Some((8, 0o700))), 0).state, State::Ok);
    }

    #[test]
    fn socket_path_ends_at_107_bytes() {
        let long = |bytes: usize| "/".to_owned() + &"x".repeat(bytes - 1 - SOCKET_NAME.len());
        assert_eq!(socket_path(Path::new(&long(107))).state, State::Ok);
        assert_eq!(socket_path(Path::new(&long(108))).state, State::Problem);
    }
}
