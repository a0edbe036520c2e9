//! The deadline plan, in numbers.

use proptest::prelude::*;

use super::{
    super::{
        capacity::Capacity,
        plan::{Class, Demand, Plan, Planner, Step},
    },
    scene::cases,
};

/// Boot of a node.
const COLD: f64 = 100.0;

fn of(joining: &[(f64, u32)]) -> Capacity {
    let mut capacity = Capacity::default();
    for (after, workers) in joining {
        capacity.join(*after, *workers);
    }
    capacity
}

fn class(slo: f64, batches: &[(f64, f64)]) -> Class {
    Class { batches: batches.to_vec(), per_second: 0.0, slo }
}

fn demand(classes: Vec<Class>, service: f64, busy: u32) -> Demand {
    Demand { classes, service, busy: f64::from(busy) }
}

fn nodes(of: u32) -> Vec<Step> {
    vec![(of, COLD); 12]
}

fn workers(plan: Plan) -> u32 {
    if let Plan::Launch(workers, _) = plan { workers } else { 0 }
}

#[test]
fn capacity_tells_when_work_is_done() {
    let table = [
        ("nobody ever comes", of(&[]), 0.0, 0.0, f64::INFINITY),
        ("one that is there", of(&[(0.0, 1)]), 7.0, 0.0, 7.0),
        ("nothing to do before, one that comes", of(&[(9.0, 1)]), 0.0, 0.0, 9.0),
        ("one there, one comes", of(&[(5.0, 1), (0.0, 1)]), 9.0, 0.0, 7.0),
        ("done before the other comes", of(&[(0.0, 1), (50.0, 9)]), 50.0, 0.0, 50.0),
        ("half of it goes elsewhere", of(&[(0.0, 2)]), 10.0, 1.0, 10.0),
        ("all of it goes elsewhere", of(&[(0.0, 2)]), 10.0, 2.0, f64::INFINITY),
        ("until more come", of(&[(0.0, 2), (10.0, 1)]), 10.0, 2.0, 20.0),
    ];
    for (name, capacity, work, load, expected) in table {
        assert!(close(capacity.until(work, load), expected), "{name}: {}", capacity.until(work, load));
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9 || (a.is_infinite() && b.is_infinite())
}

#[test]
fn from_zero_the_smallest_number_of_nodes_that_keeps_the_promise_is_launched() {
    // Of 300 s, 25 are spare; the node takes 100, so the last of `n` messages of 1 s has 175 s.
    let table = [
        ("one is enough", 1.0, 100.0, 1, 1),
        ("one is just enough", 1.0, 176.0, 1, 1),
        ("one is not enough", 1.0, 178.0, 1, 2),
        ("whole nodes", 1.0, 178.0, 4, 4),
        ("two whole nodes", 1.0, 800.0, 4, 8),
        ("long work", 60.0, 12.0, 1, 4),
    ];
    for (name, service, messages, per_node, expected) in table {
        let planner = Planner::new(&demand(vec![class(300.0, &[(messages, 0.0)])], service, 0), COLD);
        let plan = planner.plan(&of(&[]), false, &nodes(per_node), false);
        assert_eq!(workers(plan), expected, "{name}: {plan:?}");
    }
}

#[test]
fn each_message_has_its_own_deadline() {
    // 200 s of work for one worker; the last begins after 199.
    let planned = |batches: &[(f64, f64)]| {
        let planner = Planner::new(&demand(vec![class(300.0, batches)], 1.0, 0), COLD);
        workers(planner.plan(&of(&[(0.0, 1)]), false, &nodes(1), false))
    };
    assert_eq!(planned(&[(200.0, 0.0)]), 0, "all just came");
    assert_eq!(planned(&[(200.0, 100.0)]), 1, "all wait for 100 s");
    assert_eq!(planned(&[(50.0, 100.0), (150.0, 0.0)]), 0, "only the first ones do");
    assert_eq!(planned(&[(200.0, 140.0)]), 2, "the later, the more");
}

#[test]
fn a_lower_queue_waits_for_what_is_served_before_it() {
    let plan = |classes: Vec<Class>| {
        let planner = Planner::new(&demand(classes, 1.0, 0), COLD);
        planner.plan(&of(&[(0.0, 1)]), false, &nodes(1), false)
    };
    let urgent = || class(100.0, &[(80.0, 0.0)]);
    let bulk = |age| class(1000.0, &[(100.0, age)]);
    assert!(matches!(plan(vec![urgent()]), Plan::OnTime(_)));
    assert!(matches!(plan(vec![bulk(800.0)]), Plan::OnTime(_)), "alone it begins in time");
    assert!(matches!(plan(vec![urgent(), bulk(0.0)]), Plan::OnTime(_)), "young enough behind the others");
    assert_eq!(workers(plan(vec![urgent(), bulk(800.0)])), 1, "too old behind the others");
    assert!(workers(plan(vec![bulk(0.0), urgent()])) > 0, "the urgent ones behind the others");
}

#[test]
fn a_stream_of_higher_messages_takes_capacity_from_the_lower() {
    let stream = |per_second| Class { per_second, ..class(300.0, &[(1.0, 0.0)]) };
    let plan = |per_second| {
        let classes = vec![stream(per_second), class(300.0, &[(20.0, 0.0)])];
        Planner::new(&demand(classes, 1.0, 1), COLD).plan(&of(&[(0.0, 1)]), false, &nodes(1), false)
    };
    assert!(matches!(plan(0.5), Plan::OnTime(_)));
    assert!(workers(plan(0.99)) > 0);
}

#[test]
fn a_stream_that_outgrows_the_workers_calls_for_more_before_anything_is_late() {
    let plan = |per_second| {
        let classes = vec![Class { per_second, ..class(300.0, &[(1.0, 0.0)]) }];
        Planner::new(&demand(classes, 10.0, 2), COLD).plan(&of(&[(0.0, 2)]), false, &nodes(1), false)
    };
    assert!(matches!(plan(0.1), Plan::OnTime(_)), "one of two workers is enough");
    assert_eq!(workers(plan(1.0)), 4, "ten would keep up for ever; six do for as long as is foreseen");
}

#[test]
fn pending_workers_are_given_their_chance() {
    let planner = Planner::new(&demand(vec![class(300.0, &[(200.0, 0.0)])], 1.0, 0), COLD);
    // 80 + 199 is 4 s after the target, within 8 % of the SLO.
    let plan = |pending| planner.plan(&of(&[(80.0, 1)]), pending, &nodes(1), false);
    assert!(matches!(plan(true), Plan::OnTime(slack) if close(slack, -4.0)), "{:?}", plan(true));
    assert_eq!(workers(plan(false)), 1);
}

#[test]
fn a_launch_that_does_as_well_later_waits() {
    let plan = |age| {
        let planner = Planner::new(&demand(vec![class(300.0, &[(1.0, age)])], 1.0, 0), COLD);
        planner.plan(&of(&[]), false, &nodes(1), true)
    };
    assert_eq!(plan(0.0), Plan::Batching(175.0));
    assert_eq!(plan(170.0), Plan::Batching(5.0));
    assert_eq!(workers(plan(171.0)), 1);
    assert_eq!(workers(plan(9999.0)), 1, "what is late is not put off");
}

#[test]
fn where_all_are_late_what_is_nearly_as_good_does_and_nothing_that_does_not_help_is_launched() {
    let of_messages = |messages| Planner::new(&demand(vec![class(60.0, &[(messages, 0.0)])], 1.0, 0), COLD);
    // With 12 the last begins after 100 + 2000/12 = 266.6; 11 are 15 s worse, the margin is 13.
    assert_eq!(workers(of_messages(2000.0).plan(&of(&[]), false, &nodes(1), false)), 12);
    // With 12 after 117, with 7 after 128.4.
    assert_eq!(workers(of_messages(200.0).plan(&of(&[]), false, &nodes(1), false)), 7);
    let late = Planner::new(&demand(vec![class(60.0, &[(1.0, 500.0)])], 1.0, 1), COLD);
    let plan = late.plan(&of(&[(0.0, 1)]), false, &nodes(1), false);
    assert!(matches!(plan, Plan::NothingHelps(worst) if close(worst.age, 500.5)), "{plan:?}");
}

#[test]
fn one_that_is_hopelessly_late_does_not_hide_the_others() {
    let planner = Planner::new(&demand(vec![class(300.0, &[(1.0, 9000.0), (800.0, 0.0)])], 1.0, 0), COLD);
    assert_eq!(workers(planner.plan(&of(&[(50.0, 1)]), true, &nodes(1), false)), 4);
}

prop_compose! {
    fn some_demand()(
        classes in prop::collection::vec(
            (prop::collection::vec((0.5..300.0, 0.0..900.0), 0..6), 0.0..3.0, 1.0..4000.0),
            1..4,
        ),
        service in 0.01..100.0,
        busy in 0..20_u32,
    ) -> Demand {
        let classes = classes.into_iter().map(|(mut batches, per_second, slo): (Vec<(f64, f64)>, f64, f64)| {
            batches.sort_by(|a, b| b.1.total_cmp(&a.1));
            Class { batches, per_second, slo }
        });
        demand(classes.collect(), service, busy)
    }
}

fn some_capacity() -> impl Strategy<Value = Capacity> {
    prop::collection::vec((0.0..300.0, 1..9_u32), 0..5).prop_map(|joining| of(&joining))
}

fn some_steps() -> impl Strategy<Value = Vec<Step>> {
    (0..6_usize, 0..13_usize, 1..9_u32).prop_map(|(warm, cold, per_node)| {
        std::iter::repeat_n((1, 10.0), warm).chain(std::iter::repeat_n((per_node, COLD), cold)).collect()
    })
}

proptest! {
    #![proptest_config(cases(1000))]
    #[test]
    fn what_capacity_tells_is_when_so_much_is_done(
        joining in prop::collection::vec((0.0..300.0, 1..9_u32), 1..6),
        work in 0.0..5000.0,
        load in 0.0..5.0,
    ) {
        let until = of(&joining).until(work, load);
        let at = |time: f64| joining.iter().filter(|(after, _)| *after <= time).map(|(_, n)| f64::from(*n)).sum::<f64>();
        if until.is_finite() {
            // Summed up in small steps, as a second way to the same.
            let step = until / 2000.0;
            let done: f64 = (0..2000).map(|i| (at((f64::from(i) + 0.5) * step) - load).max(0.0) * step).sum();
            let error = 250.0 * step + 1e-6;
            prop_assert!((done - work).abs() <= error, "{done} of {work} in {until}");
        } else {
            prop_assert!(at(f64::INFINITY) <= load);
        }
    }

    #[test]
    fn more_need_never_means_fewer_workers(
        before in some_demand(),
        capacity in some_capacity(),
        steps in some_steps(),
        pending in any::<bool>(),
        more in 1.0..500.0,
        older in 0.0..500.0,
    ) {
        let mut after = before.clone();
        // What comes at the end is the youngest; what waits gets older.
        if let Some(last) = after.classes.last_mut() {
            last.batches.push((more, 0.0));
        }
        for (_, age) in after.classes.iter_mut().flat_map(|class| &mut class.batches) {
            *age += older;
        }
        let planned = |demand: &Demand| workers(Planner::new(demand, COLD).plan(&capacity, pending, &steps, false));
        let (fewer, more) = (planned(&before), planned(&after));
        prop_assert!(fewer <= more, "{fewer} for less, {more} for more");
    }

    #[test]
    fn a_step_fewer_would_not_do(demand in some_demand(), capacity in some_capacity(), steps in some_steps()) {
        let planner = Planner::new(&demand, COLD);
        let planned = workers(planner.plan(&capacity, false, &steps, false));
        let most: u32 = steps.iter().map(|(workers, _)| workers).sum();
        prop_assert!(planned <= most);
        if planned > 0 {
            // Without the last step it is asked for again, whoever is counted on.
            let mut fewer = capacity.clone();
            let mut rest = steps.clone();
            let mut joined = 0;
            while let Some((workers, after)) = rest.first().copied() {
                if joined + workers >= planned {
                    break;
                }
                joined += workers;
                fewer.join(after, workers);
                rest.remove(0);
            }
            let again = workers(planner.plan(&fewer, false, &rest, false));
            prop_assert_eq!(again, planned - joined);
        }
    }
}
