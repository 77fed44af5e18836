//! Limits end a task and are named (S83); what does not fit the output schema is sent back.

use crate::{
    journal::TaskState,
    model::ModelEvent,
    secrets::Secrets,
    tasks::{Caller, Refusal},
    testing::{Act, Rig, alice, bundle, call, calls, message, say, spec, text, until},
};
use roadstead_contract::control::{Budget, Trust};
use serde_json::{Value, json};

async fn ends_with(limits: Value, acts: Vec<Act>, code: &str) -> Rig {
    let rig = Rig::new(json!({"limits": limits}));
    rig.plays(acts);
    let view = rig.ask("go").await;
    assert_eq!(
        (view.status.state, view.status.reason.as_str()),
        (TaskState::Failed, code),
        "{:?}",
        view.status
    );
    rig
}

fn log() -> Act {
    calls(&[call("c", "log", json!({"n": 1}))])
}

#[tokio::test]
async fn s83_steps() {
    let rig = ends_with(json!({"steps": 2}), vec![log(), log(), log()], "limit.steps").await;
    assert_eq!(rig.script.asked.lock().len(), 2);
}

#[tokio::test]
async fn s83_tokens() {
    // 15 tokens a call.
    let rig = ends_with(json!({"tokens": 30}), vec![log(), log(), log()], "limit.tokens").await;
    assert_eq!(rig.script.asked.lock().len(), 2);
    assert_eq!(rig.asked(1).max_output_tokens, Some(15));
}

#[tokio::test]
async fn s83_cost() {
    // 60 millionths a call.
    let rig = ends_with(
        json!({"cost": "0.0001 USD"}),
        vec![log(), log(), log()],
        "limit.cost",
    )
    .await;
    assert_eq!(rig.script.asked.lock().len(), 2);
}

#[tokio::test]
async fn s83_a_cost_limit_that_nothing_measures_is_not_begun_with() {
    let rig = Rig::new(json!({}));
    // The document's own: the models' prices are in USD.
    let euros = bundle(&spec(json!({"limits": {"cost": "1 EUR"}})), 2);
    let refused = rig
        .engine
        .apply(euros, Secrets::default(), Trust::default())
        .expect_err("refused");
    assert!(
        refused.starts_with("spec.limits.cost: expected prices in EUR of the model fast")
            && refused.ends_with("found prices in USD"),
        "{refused}"
    );
    // A calling agent's.
    for (cost, state) in [("1 EUR", TaskState::Failed), ("1 USD", TaskState::Completed)] {
        rig.plays([say("done")]);
        let caller = Caller {
            budget: Some(Budget {
                steps: 5,
                tokens: 10_000,
                tool_calls: 5,
                wall_time_ms: 60_000,
                costs: vec![cost.parse().expect("money")],
            }),
            ..alice()
        };
        let sent = rig
            .engine
            .tasks
            .send(&caller, message("hi"))
            .await
            .expect("taken");
        let view = sent.settled().await;
        assert_eq!(view.status.state, state, "{cost}: {:?}", view.status);
        if state == TaskState::Failed {
            assert_eq!(view.status.reason, "limit.cost");
            rig.script.acts.lock().clear();
            assert!(rig.script.asked.lock().is_empty(), "no model is asked");
        }
    }
}

#[tokio::test]
async fn s83_tool_calls() {
    let three: Vec<_> = (0..3)
        .map(|n| call(&format!("c{n}"), "log", json!({"n": n})))
        .collect();
    let rig = ends_with(json!({"toolCalls": 2}), vec![calls(&three)], "limit.toolCalls").await;
    assert!(rig.tools.names().is_empty());
}

#[tokio::test]
async fn s83_wall_time() {
    ends_with(
        json!({"wallTime": "100ms"}),
        vec![Act::Hang(vec![])],
        "limit.wallTime",
    )
    .await;
}

#[tokio::test]
async fn s83_output_size() {
    let flood = (0..20).map(|_| ModelEvent::Text("x".repeat(100_000))).collect();
    ends_with(json!({}), vec![Act::Hang(flood)], "limit.outputSize").await;
}

#[tokio::test]
async fn s83_sessions() {
    let rig = Rig::new(json!({"limits": {"sessions": 2}}));
    rig.plays([Act::Hang(vec![]), Act::Hang(vec![])]);
    let one = message("one");
    let first = rig.send(one.clone()).await.expect("taken");
    rig.send(message("two")).await.expect("taken");
    assert_eq!(
        rig.send(message("three")).await.expect_err("full"),
        Refusal::Full(2)
    );
    // The answer to the first was lost on the way: that message needs no other seat, and nobody else's is it.
    let again = rig.send(one.clone()).await.expect("known");
    assert_eq!(again.view().uid, first.view().uid);
    let bob = Caller {
        subject: "bob".to_owned(),
        ..Caller::default()
    };
    let stranger = rig.engine.tasks.send(&bob, one).await;
    assert_eq!(stranger.expect_err("full"), Refusal::Full(2));
    rig.engine
        .tasks
        .cancel(&alice(), &first.view().uid)
        .await
        .expect("canceled");
    until("a place is free", || rig.engine.tasks.active() == 1).await;
    assert!(rig.send(message("four")).await.is_ok());
}

#[tokio::test]
async fn s83_depth_of_agent_calls() {
    let rig = Rig::new(json!({}));
    let deep = Caller { depth: 6, ..alice() };
    let refusal = rig
        .engine
        .tasks
        .send(&deep, message("hi"))
        .await
        .expect_err("too deep");
    assert!(refusal.to_string().contains("at most 5 deep"), "{refusal}");
}

#[tokio::test]
async fn a_history_with_calls_that_were_never_made_still_fits_the_providers() {
    let rig = ends_with(
        json!({"toolCalls": 0}),
        vec![log(), say("hello")],
        "limit.toolCalls",
    )
    .await;
    let context = {
        let list = crate::tasks::List {
            limit: 1,
            ..Default::default()
        };
        rig.engine.tasks.list(&alice(), list).await.expect("a page").0[0]
            .context
            .clone()
    };
    let mut next = message("and now?");
    next.context = Some(context);
    rig.send(next).await.expect("taken").settled().await;
    let results = rig.results(1);
    assert!(results[0].1 && results[0].0.contains("No result"), "{results:?}");
}

fn schema() -> Value {
    json!({"outputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}})
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_sent_back_with_what_is_wrong() {
    let rig = Rig::new(schema());
    rig.plays([say("three"), say("{\"n\": \"three\"}"), say("{\"n\": 3}")]);
    let view = rig.ask("how many?").await;
    assert_eq!(
        (view.status.state, text(&view)),
        (TaskState::Completed, "{\"n\": 3}")
    );
    assert!(view.answer.as_ref().is_some_and(|a| a.json));
    let notes = format!("{:?}", rig.asked(2).messages);
    assert!(
        notes.contains("expected JSON") && notes.contains("at /n"),
        "{notes}"
    );
    assert_eq!(view.counters.expect("ended").model_calls, 3);
}

#[tokio::test]
async fn an_answer_that_never_fits_ends_the_task() {
    let rig = Rig::new(schema());
    rig.plays([say("a"), say("b"), say("c")]);
    let view = rig.ask("how many?").await;
    assert_eq!(
        (view.status.state, view.status.reason.as_str()),
        (TaskState::Failed, "output.schema")
    );
    assert_eq!(text(&view), "c");
}
