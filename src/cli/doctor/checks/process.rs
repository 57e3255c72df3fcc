//! Can engines be ended for certain?

use std::io;

use super::{
    Check,
    machine::{Cgroups, Kernel},
};

const CGROUP: &str = "cgroup";
const KERNEL: &str = "kernel";

pub(super) fn cgroups(cgroups: &Cgroups) -> Check {
    let without = "an engine's processes are then found by descent and by a mark in their environment, which all engines known so far keep";
    match cgroups {
        Cgroups::Full => Check::ok(CGROUP, "each engine gets its own"),
        Cgroups::WithoutKill => Check::warning(
            CGROUP,
            "each engine gets its own, and its members are killed one by one",
            "a kernel of 5.14 or newer kills them at once",
        ),
        Cgroups::Closed(io::ErrorKind::NotFound) => Check::warning(
            CGROUP,
            format!("there is no cgroup v2 here; {without}"),
            "boot with systemd.unified_cgroup_hierarchy=1, or leave it so",
        ),
        Cgroups::Closed(reason) => Check::warning(
            CGROUP,
            format!("this user may not make one ({reason}); {without}"),
            "run it as a systemd service with Delegate=yes, or leave it so",
        ),
    }
}

pub(super) fn kernel(kernel: &Kernel) -> Check {
    let release = &kernel.release;
    if !kernel.has_death_signal {
        return Check::problem(
            KERNEL,
            format!("{release} does not tell a process that its parent died (PR_SET_PDEATHSIG)"),
            "run on Linux itself: with this kernel an engine may outlive kvwarden",
        );
    }
    if !kernel.has_pidfd {
        return Check::warning(
            KERNEL,
            format!("{release} has no pidfd: a signal could reach a process that reuses a pid"),
            "use Linux 5.3 or newer; a container's seccomp profile may also forbid pidfd_open",
        );
    }
    Check::ok(KERNEL, format!("{release}, with pidfd and PDEATHSIG"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::State;

    fn linux(has_pidfd: bool, has_death_signal: bool) -> State {
        let reading = Kernel {
            release: "6.1.0".to_owned(),
            has_pidfd,
            has_death_signal,
        };
        kernel(&reading).state
    }

    #[test]
    fn engines_work_without_cgroups() {
        assert_eq!(cgroups(&Cgroups::Full).state, State::Ok);
        assert_eq!(cgroups(&Cgroups::WithoutKill).state, State::Warning);
        let closed = cgroups(&Cgroups::Closed(io::ErrorKind::PermissionDenied));
        assert_eq!(closed.state, State::Warning);
        assert!(closed.fix.unwrap().contains("Delegate=yes"));
        let absent = cgroups(&Cgroups::Closed(io::ErrorKind::NotFound));
        assert!(absent.finding.contains("no cgroup v2"));
    }

    #[test]
    fn kernel_without_a_death_signal_is_a_problem() {
        assert_eq!(linux(true, true), State::Ok);
        assert_eq!(linux(false, true), State::Warning);
        assert_eq!(linux(true, false), State::Problem);
    }
}
