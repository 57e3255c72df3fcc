//! Does anything run that nobody looks after?

use std::io;

use super::{Check, machine::EngineTree};
use crate::terminal;

const NAME: &str = "leftovers";

pub(super) fn processes(trees: &io::Result<Vec<EngineTree>>) -> Check {
    let trees = match trees {
        Ok(trees) => trees,
        Err(error) => {
            let finding = format!("processes cannot be looked at: {error}");
            return Check::warning(
                NAME,
                finding,
                "mount /proc, or raise the limit of open files",
            );
        }
    };
    let (live, left): (Vec<_>, Vec<_>) = trees.iter().partition(|tree| tree.is_supervised);
    if left.is_empty() {
        let finding = match live.len() {
            0 => "no engine runs".to_owned(),
            live => format!(
                "{} running, each looked after",
                terminal::count(live, "engine")
            ),
        };
        return Check::ok(NAME, finding);
    }
    let pids: Vec<String> = left
        .iter()
        .flat_map(|tree| &tree.pids)
        .map(ToString::to_string)
        .collect();
    let engines = match left.len() {
        1 => "an engine whose kvwarden is".to_owned(),
        several => format!("{several} engines whose kvwarden is"),
    };
    Check::problem(
        NAME,
        format!(
            "{} of {engines} gone",
            terminal::count_of(pids.len(), "process", "processes")
        ),
        format!("kill -KILL {}", pids.join(" ")),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cli::doctor::State;

    fn tree(is_supervised: bool, pids: &[i32]) -> EngineTree {
        EngineTree {
            token: "t".to_owned(),
            pids: pids.iter().copied().collect::<BTreeSet<_>>(),
            is_supervised,
        }
    }

    #[test]
    fn only_engines_without_a_kvwarden_are_left_over() {
        let check = processes(&Ok(vec![tree(true, &[1, 2]), tree(false, &[8, 9])]));
        assert_eq!(check.state, State::Problem);
        assert_eq!(
            check.finding,
            "2 processes of an engine whose kvwarden is gone"
        );
        assert_eq!(check.fix.as_deref(), Some("kill -KILL 8 9"));
    }

    #[test]
    fn engines_that_serve_are_fine() {
        let check = processes(&Ok(vec![tree(true, &[1])]));
        assert_eq!(
            check,
            Check::ok(NAME, "1 engine running, each looked after")
        );
        assert_eq!(processes(&Ok(vec![])).state, State::Ok);
    }

    #[test]
    fn processes_that_cannot_be_seen_are_not_called_clean() {
        let failed = Err(io::ErrorKind::PermissionDenied.into());
        assert_eq!(processes(&failed).state, State::Warning);
    }
}
