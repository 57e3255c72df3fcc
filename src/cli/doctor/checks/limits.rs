//! Does the system allow enough of what is counted: descriptors, memory, shared memory?

use super::{Check, Needs, machine::Memory};
use crate::terminal;

/// Of a request: one to the client, one to the engine.
const FILES_PER_REQUEST: u64 = 2;

/// Listeners, logs, shims, the runtime's own.
const OTHER_FILES: u64 = 512;

/// With fewer, a few hundred streams fill it.
const FEWEST_FILES: u64 = 1024;

/// Importing torch and an engine takes about this much before any weight is loaded.
const ENGINE_MEMORY: u64 = 4 << 30;

/// The server and a small llama.cpp model.
const LEAST_MEMORY: u64 = 1 << 30;

/// vLLM and SGLang hand tensors between their processes through it; a container's usual 64 MiB
/// end in `Bus error`.
const SHARED_MEMORY: u64 = 1 << 30;

const FILES: &str = "open files";
const MEMORY: &str = "memory";
const SHARED: &str = "shared memory";

/// Engines that run as several processes, each with its own torch.
fn has_torch(needs: &Needs) -> bool {
    needs.recipes.iter().any(|recipe| recipe.name != "llamacpp")
}

pub(super) fn open_files(limits: Option<(u64, u64)>, max_in_flight: usize) -> Check {
    let Some((_, hard)) = limits else {
        return Check::not_applicable(FILES, "the system does not tell its limit");
    };
    let wanted = u64::try_from(max_in_flight)
        .unwrap_or(u64::MAX)
        .saturating_mul(FILES_PER_REQUEST)
        .saturating_add(OTHER_FILES);
    if hard >= wanted {
        return Check::ok(
            FILES,
            format!("up to {hard}; `kvwarden serve` raises its own limit"),
        );
    }
    let enough_for = hard.saturating_sub(OTHER_FILES) / FILES_PER_REQUEST;
    let finding = format!(
        "at most {hard}: enough for {enough_for} requests at once, and limits.max_in_flight is {max_in_flight}"
    );
    let fix = format!(
        "systemd: LimitNOFILE={wanted}; container: --ulimit nofile={wanted}; shell: ulimit -Hn {wanted}; or lower limits.max_in_flight"
    );
    if hard < FEWEST_FILES {
        Check::problem(FILES, finding, fix)
    } else {
        Check::warning(FILES, finding, fix)
    }
}

pub(super) fn memory(memory: Option<Memory>, needs: &Needs) -> Check {
    let Some(Memory {
        total,
        available,
        limit,
    }) = memory
    else {
        return Check::not_applicable(MEMORY, "the system does not tell (/proc/meminfo)");
    };
    let usable = available.min(limit.unwrap_or(available));
    let wanted = if needs.are_known && has_torch(needs) {
        ENGINE_MEMORY
    } else {
        LEAST_MEMORY
    };
    let finding = match limit {
        Some(limit) => format!(
            "{} available, and this container may use {}",
            terminal::bytes(available),
            terminal::bytes(limit)
        ),
        None => format!(
            "{} of {} available",
            terminal::bytes(available),
            terminal::bytes(total)
        ),
    };
    if usable >= wanted {
        return Check::ok(MEMORY, finding);
    }
    let fix = format!(
        "end other programs, or give it more: an engine takes {} and its weights",
        terminal::bytes(wanted)
    );
    Check::warning(MEMORY, finding, fix)
}

pub(super) fn shared_memory(size_and_free: Option<(u64, u64)>, needs: &Needs) -> Check {
    if !has_torch(needs) {
        return Check::not_applicable(SHARED, "only vLLM and SGLang need it");
    }
    let fix = "container: --shm-size=8g (or --ipc=host); else: mount -o remount,size=8G /dev/shm";
    let Some((size, free)) = size_and_free else {
        return needs.unmet(
            SHARED,
            "there is no /dev/shm, and vLLM and SGLang need it",
            fix,
        );
    };
    let finding = format!(
        "/dev/shm: {} of {} free",
        terminal::bytes(free),
        terminal::bytes(size)
    );
    if free >= SHARED_MEMORY {
        return Check::ok(SHARED, finding);
    }
    let finding = format!(
        "{finding}; vLLM and SGLang need {}",
        terminal::bytes(SHARED_MEMORY)
    );
    needs.unmet(SHARED, finding, fix)
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{known, unknown},
        *,
    };
    use crate::cli::doctor::State;

    const GIB: u64 = 1 << 30;

    #[test]
    fn files_are_held_against_what_the_configuration_allows() {
        let state = |hard, in_flight| open_files(Some((1024, hard)), in_flight).state;
        assert_eq!(state(65_536, 16_384), State::Ok);
        assert_eq!(state(4096, 16_384), State::Warning);
        assert_eq!(state(4096, 1000), State::Ok);
        assert_eq!(state(256, 16_384), State::Problem);
        assert_eq!(state(u64::MAX, usize::MAX), State::Ok);
    }

    #[test]
    fn limit_of_the_container_counts() {
        let memory = |limit| {
            let reading = Memory {
                total: 64 * GIB,
                available: 32 * GIB,
                limit,
            };
            memory(Some(reading), &known(&["vllm-cpu"])).state
        };
        assert_eq!(memory(None), State::Ok);
        assert_eq!(memory(Some(2 * GIB)), State::Warning);
    }

    #[test]
    fn small_shared_memory_is_a_problem_for_engines_of_several_processes() {
        let small = Some((64 << 20, 64 << 20));
        assert_eq!(
            shared_memory(small, &known(&["vllm"])).state,
            State::Problem
        );
        assert_eq!(shared_memory(small, &unknown()).state, State::Warning);
        assert_eq!(
            shared_memory(small, &known(&["llamacpp"])).state,
            State::NotApplicable
        );
        assert_eq!(
            shared_memory(Some((8 * GIB, 8 * GIB)), &known(&["vllm"])).state,
            State::Ok
        );
        assert_eq!(
            shared_memory(None, &known(&["sglang"])).state,
            State::Problem
        );
    }
}
