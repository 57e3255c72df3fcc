//! Which waiting request goes next: priority first (lower number earlier), then short prompts
//! before long ones, then arrival order.
//!
//! A long prompt that waited longer than [`Limits::long_patience`] is ordered by arrival again, so
//! a steady stream of short ones can't starve it. The queue owns what waits (`T`, in the server a
//! ticket) and hands it out at dispatch; who dispatched must report [`Queue::finish`].

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Bounds of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that run at once.
    pub max_running: usize,
    /// Requests that wait.
    pub max_waiting: usize,
    /// From how many prompt tokens a request counts as long.
    pub long_prompt_tokens: u64,
    /// How long a long prompt lets shorter ones pass.
    pub long_patience: Duration,
}

/// What the queue has to know about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Lower goes first.
    pub priority: i32,
    /// Estimated prompt length.
    pub prompt_tokens: u64,
    /// When it no longer wants to wait.
    pub expires: Instant,
}

/// A request's turn has come.
#[derive(Debug, PartialEq, Eq)]
pub struct Dispatch<T> {
    /// What waited.
    pub item: T,
    /// For how long.
    pub waited: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Length {
    Short,
    Long,
}

#[derive(Debug)]
struct Waiting<T> {
    item: T,
    since: Instant,
    expires: Instant,
}

/// Lane of equals: arrival number -> request.
type Lane<T> = BTreeMap<u64, Waiting<T>>;

/// The queue of one model. All operations cost O(log n) except [`Queue::remove_if`].
#[derive(Debug)]
pub struct Queue<T> {
    limits: Limits,
    lanes: BTreeMap<(i32, Length), Lane<T>>,
    arrivals: u64,
    waiting: usize,
    running: usize,
}

impl<T> Queue<T> {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            lanes: BTreeMap::new(),
            arrivals: 0,
            waiting: 0,
            running: 0,
        }
    }

    /// Lets `item` wait for its turn.
    ///
    /// # Errors
    /// Gives the item back when the queue is full.
    pub fn push(&mut self, arrival: Arrival, item: T, now: Instant) -> Result<(), T> {
        if self.waiting >= self.limits.max_waiting {
            return Err(item);
        }
        let is_long = arrival.prompt_tokens >= self.limits.long_prompt_tokens;
        let length = if is_long { Length::Long } else { Length::Short };
        let waiting = Waiting {
            item,
            since: now,
            expires: arrival.expires,
        };
        self.lanes
            .entry((arrival.priority, length))
            .or_default()
            .insert(self.arrivals, waiting);
        self.arrivals += 1;
        self.waiting += 1;
        Ok(())
    }

    /// The next request, if one waits and there is room for it.
    pub fn next(&mut self, now: Instant) -> Option<Dispatch<T>> {
        if self.running >= self.limits.max_running {
            return None;
        }
        let lane = self.next_lane(now)?;
        let (_, head) = self.lanes.get_mut(&lane)?.pop_first()?;
        self.forget_if_empty(lane);
        self.waiting -= 1;
        self.running += 1;
        Some(Dispatch {
            item: head.item,
            waited: now.saturating_duration_since(head.since),
        })
    }

    /// A dispatched request ended, however it ended.
    pub fn finish(&mut self) {
        debug_assert!(self.running > 0, "finish without dispatch");
        self.running = self.running.saturating_sub(1);
    }

    /// Removes the waiting requests whose time is over.
    pub fn remove_expired(&mut self, now: Instant) -> Vec<T> {
        self.extract(|waiting| waiting.expires <= now)
    }

    /// Removes the waiting requests that nobody waits for any more.
    pub fn remove_if(&mut self, is_gone: impl Fn(&T) -> bool) -> Vec<T> {
        self.extract(|waiting| is_gone(&waiting.item))
    }

    /// Requests that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Requests that were dispatched and have not ended.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running
    }

    /// How long the request has waited that waits longest.
    #[must_use]
    pub fn oldest_wait(&self, now: Instant) -> Option<Duration> {
        let heads = self
            .lanes
            .values()
            .filter_map(|lane| lane.first_key_value());
        heads
            .map(|(_, head)| now.saturating_duration_since(head.since))
            .max()
    }

    fn next_lane(&self, now: Instant) -> Option<(i32, Length)> {
        let (&first, lane) = self.lanes.first_key_value()?;
        let (priority, Length::Short) = first else {
            return Some(first);
        };
        let long = (priority, Length::Long);
        let overtaken = self
            .lanes
            .get(&long)
            .and_then(|lane| lane.first_key_value());
        let is_overdue = overtaken.is_some_and(|(arrival, head)| {
            let waited = now.saturating_duration_since(head.since);
            waited >= self.limits.long_patience && Some(arrival) < lane.keys().next()
        });
        Some(if is_overdue { long } else { first })
    }

    fn extract(&mut self, mut is_out: impl FnMut(&Waiting<T>) -> bool) -> Vec<T> {
        let mut out = Vec::new();
        self.lanes.retain(|_, lane| {
            out.extend(
                lane.extract_if(.., |_, waiting| is_out(waiting))
                    .map(|(_, w)| w.item),
            );
            !lane.is_empty()
        });
        self.waiting -= out.len();
        out
    }

    fn forget_if_empty(&mut self, lane: (i32, Length)) {
        if self.lanes.get(&lane).is_some_and(BTreeMap::is_empty) {
            self.lanes.remove(&lane);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(max_running: usize, max_waiting: usize) -> Limits {
        Limits {
            max_running,
            max_waiting,
            long_prompt_tokens: 1000,
            long_patience: Duration::from_secs(5),
        }
    }

    fn epoch() -> Instant {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        Instant::now()
    }

    fn arrival(priority: i32, prompt_tokens: u64, now: Instant) -> Arrival {
        Arrival {
            priority,
            prompt_tokens,
            expires: now + Duration::from_secs(60),
        }
    }

    fn drain(queue: &mut Queue<&'static str>, now: Instant) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.next(now))
            .map(|dispatch| dispatch.item)
            .collect()
    }

    #[test]
    fn lower_priority_number_goes_first_then_short_then_arrival() {
        let now = epoch();
        let mut queue = Queue::new(limits(10, 10));
        for (name, priority, tokens) in [
            ("late class", 5, 1),
            ("long", 0, 2000),
            ("first", 0, 10),
            ("second", 0, 999),
            ("urgent", -1, 5000),
        ] {
            queue
                .push(arrival(priority, tokens, now), name, now)
                .unwrap();
        }
        assert_eq!(
            drain(&mut queue, now),
            ["urgent", "first", "second", "long", "late class"]
        );
    }

    #[test]
    fn a_long_prompt_out_of_patience_is_ordered_by_arrival() {
        let now = epoch();
        let mut queue = Queue::new(limits(10, 10));
        queue.push(arrival(0, 1, now), "early short", now).unwrap();
        queue.push(arrival(0, 2000, now), "long", now).unwrap();
        queue.push(arrival(0, 1, now), "late short", now).unwrap();
        let later = now + Duration::from_secs(5);
        assert_eq!(
            drain(&mut queue, later),
            ["early short", "long", "late short"]
        );
    }

    #[test]
    fn no_more_run_than_the_limit_until_one_finishes() {
        let now = epoch();
        let mut queue = Queue::new(limits(1, 10));
        queue.push(arrival(0, 1, now), "a", now).unwrap();
        queue.push(arrival(0, 1, now), "b", now).unwrap();
        assert_eq!(drain(&mut queue, now), ["a"]);
        queue.finish();
        assert_eq!(drain(&mut queue, now), ["b"]);
    }

    #[test]
    fn a_full_queue_gives_the_request_back() {
        let now = epoch();
        let mut queue = Queue::new(limits(1, 1));
        queue.push(arrival(0, 1, now), "in", now).unwrap();
        assert_eq!(queue.push(arrival(0, 1, now), "out", now), Err("out"));
    }

    #[test]
    fn expired_and_abandoned_requests_leave() {
        let now = epoch();
        let mut queue = Queue::new(limits(1, 10));
        queue.push(arrival(0, 1, now), "stays", now).unwrap();
        queue
            .push(
                Arrival {
                    expires: now,
                    ..arrival(0, 1, now)
                },
                "expired",
                now,
            )
            .unwrap();
        queue.push(arrival(3, 1, now), "hung up", now).unwrap();
        assert_eq!(queue.remove_expired(now), ["expired"]);
        assert_eq!(queue.remove_if(|item| *item == "hung up"), ["hung up"]);
        assert_eq!(
            (queue.waiting(), drain(&mut queue, now)),
            (1, vec!["stays"])
        );
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(i32, u64, u64),
        Next,
        Finish,
        Expire,
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (-2_i32..3, 0_u64..2000, 1_u64..30).prop_map(|(p, t, e)| Step::Push(p, t, e)),
            2 => Just(Step::Next),
            2 => Just(Step::Finish),
            1 => Just(Step::Expire),
            1 => (0_u64..8).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn counts_hold_limits_and_nobody_is_lost_or_served_twice(
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let mut now = epoch();
            let mut queue = Queue::new(limits(3, 8));
            let (mut pushed, mut left) = (0_u64, std::collections::BTreeSet::new());
            for step in steps {
                match step {
                    Step::Push(priority, prompt_tokens, secs) => {
                        let expires = now + Duration::from_secs(secs);
                        let arrival = Arrival { priority, prompt_tokens, expires };
                        pushed += u64::from(queue.push(arrival, pushed, now).is_ok());
                    }
                    Step::Next => {
                        let had_room = queue.running() < 3 && queue.waiting() > 0;
                        let next = queue.next(now);
                        prop_assert_eq!(next.is_some(), had_room, "work conservation");
                        if let Some(dispatch) = next {
                            prop_assert!(left.insert(dispatch.item));
                        }
                    }
                    Step::Finish if queue.running() > 0 => queue.finish(),
                    Step::Finish => {}
                    Step::Expire => {
                        for item in queue.remove_expired(now) {
                            prop_assert!(left.insert(item));
                        }
                    }
                    Step::Pass(secs) => now += Duration::from_secs(secs),
                }
                prop_assert!(queue.running() <= 3 && queue.waiting() <= 8);
                prop_assert_eq!(queue.waiting(), usize::try_from(pushed).unwrap() - left.len());
            }
        }
    }
}
