//! Engines that come and go behind one queue.

use super::{super::*, arrival, epoch, fair};

fn running(scheduler: &mut Scheduler<u32>) -> usize {
    while scheduler.next(epoch()).is_some() {}
    scheduler.total().running
}

#[test]
fn what_runs_follows_the_number_of_engines() {
    for discipline in [Discipline::Fifo, Discipline::Drr, Discipline::Fair] {
        let now = epoch();
        let mut settings = fair(Capacity::of_engine(4, 1000, None));
        settings.discipline = discipline;
        settings.max_in_flight = 4;
        let mut scheduler = Scheduler::new(&settings);
        for tenant in ["a", "b"] {
            for item in 0..20 {
                let arrival = arrival(tenant, tenant, 1, now);
                scheduler.push(&arrival, item, now).unwrap();
            }
        }
        assert_eq!(running(&mut scheduler), 4, "{discipline:?}");
        scheduler.serve_with(2, &settings);
        assert_eq!(running(&mut scheduler), 8, "{discipline:?}");
        scheduler.serve_with(1, &settings);
        assert!(scheduler.next(now).is_none(), "{discipline:?}");
        assert_eq!(scheduler.total().running, 8, "{discipline:?}");
    }
}

#[test]
fn the_prefill_window_keeps_its_proportion() {
    let settings = fair(Capacity::of_engine(4, 1000, None));
    let mut scheduler = Scheduler::<u32>::new(&settings);
    let limit = |scheduler: &Scheduler<u32>| {
        let window = scheduler.snapshot_window();
        window.map(|window| window.unacked_prefill_limit)
    };
    scheduler.serve_with(3, &settings);
    assert_eq!(limit(&scheduler), Some(3000));
    scheduler.serve_with(1, &settings);
    assert_eq!(limit(&scheduler), Some(1000));
}
