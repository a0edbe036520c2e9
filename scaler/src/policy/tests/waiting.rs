//! How old each waiting message is.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::{super::Batch, super::waiting::Waiting, scene::*};

fn after(seconds: u64) -> crate::time::Time {
    in_future(seconds)
}

fn batches(of: &Waiting) -> Vec<(u64, f64)> {
    of.batches().iter().map(|batch| (batch.since.since(NOW).as_secs(), batch.count)).collect()
}

#[test]
fn who_came_first_is_taken_first() {
    let mut waiting = Waiting::default();
    waiting.turn(10, 0.0, after(0));
    waiting.turn(15, 0.0, after(5));
    assert_eq!(batches(&waiting), [(0, 10.0), (5, 5.0)]);
    waiting.turn(12, 0.0, after(6));
    assert_eq!(batches(&waiting), [(0, 7.0), (5, 5.0)], "what fell was taken from the front");
    waiting.turn(12, 4.0, after(7));
    assert_eq!(batches(&waiting), [(0, 3.0), (5, 5.0), (7, 4.0)], "level: as many came as were taken");
    waiting.turn(2, 50.0, after(8));
    assert_eq!(batches(&waiting), [(8, 2.0)], "all were taken");
    waiting.turn(0, 0.0, after(9));
    assert_eq!(batches(&waiting), []);
}

#[test]
fn what_was_persisted_is_sorted_and_freed_of_nonsense() {
    let batch = |since, count| Batch { since: after(since), count };
    let resumed = Waiting::resumed(&[batch(9, 1.0), batch(3, 2.0), batch(4, f64::NAN), batch(5, -1.0)]);
    assert_eq!(batches(&resumed), [(3, 2.0), (9, 1.0)]);
}

proptest! {
    #![proptest_config(cases(200))]
    #[test]
    fn no_message_is_taken_for_younger_than_it_is(
        looks in prop::collection::vec((1..20_u64, 0..30_u32, 0..30_u32), 1..80),
        told in 0.0..1.0,
    ) {
        let mut waiting = Waiting::default();
        // When each message came, the oldest first.
        let mut truth: VecDeque<u64> = VecDeque::new();
        let mut now = 0;
        for (pause, taken, came) in looks {
            let before = now;
            now += pause;
            let count = u32::try_from(truth.len()).unwrap();
            let taken = taken.min(count);
            truth.drain(..usize::try_from(taken).unwrap());
            truth.extend((0..came).map(|_| now));
            let count = count - taken + came;
            // Of what was taken only a part may be known.
            waiting.turn(count.into(), f64::from(taken) * told, after(before));
            let batches = batches(&waiting);
            let total: f64 = batches.iter().map(|(_, count)| count).sum();
            prop_assert!((total - f64::from(count)).abs() < 1e-3, "{total} of {count}");
            prop_assert!(batches.len() <= 24 && waiting.persisted().len() <= 6);
            prop_assert!(batches.is_sorted_by_key(|(since, _)| *since));
            let since = |place: f64| {
                let mut end = 0.0;
                let holds = |(_, count): &&(u64, f64)| {
                    end += count;
                    place < end
                };
                batches.iter().find(holds).or(batches.last()).unwrap().0
            };
            for (place, came) in (0_u32..).zip(&truth) {
                let since = since(f64::from(place) + 0.5);
                prop_assert!(since <= *came, "a message of {came} is taken for one of {since}");
            }
        }
    }
}
