//! Models that fail: tried again while nothing was shown, replaced, gone on with.

use crate::{
    journal::TaskState,
    model::{ChatMessage, ErrorClass, ModelEvent, StopReason},
    testing::{Act, Rig, fails, say, text},
};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

fn asked(rig: &Rig) -> Vec<String> {
    rig.script
        .asked
        .lock()
        .iter()
        .map(|(model, _)| model.clone())
        .collect()
}

#[tokio::test]
async fn a_failure_before_anything_was_shown_is_tried_again() {
    for class in [
        ErrorClass::Connect,
        ErrorClass::Status(500),
        ErrorClass::Status(408),
        ErrorClass::Cut,
        ErrorClass::Nonsense,
        ErrorClass::RateLimited { retry_after: None },
    ] {
        let rig = Rig::new(json!({}));
        rig.plays([fails(class), say("hello")]);
        let view = rig.ask("hi").await;
        assert_eq!(
            (view.status.state, text(&view)),
            (TaskState::Completed, "hello"),
            "{class:?}"
        );
        assert_eq!(view.counters.expect("ended").retries, 1);
    }
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let rig = Rig::new(json!({}));
    let after = Duration::from_millis(400);
    rig.plays([
        fails(ErrorClass::RateLimited {
            retry_after: Some(after),
        }),
        say("hello"),
    ]);
    let began = Instant::now();
    rig.ask("hi").await;
    assert!(began.elapsed() >= after, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_refusal_is_not_tried_again() {
    let rig = Rig::new(json!({}));
    rig.plays([fails(ErrorClass::Refused), say("hello")]);
    let view = rig.ask("hi").await;
    assert_eq!(
        (view.status.state, view.status.reason.as_str()),
        (TaskState::Failed, "model.refused")
    );
    assert_eq!(asked(&rig), ["fast"]);
}

#[tokio::test]
async fn the_next_model_answers_where_the_first_does_not() {
    let rig = Rig::new(json!({"model": ["fast", "slow"]}));
    rig.plays([fails(ErrorClass::Refused), say("hello")]);
    let view = rig.ask("hi").await;
    assert_eq!(text(&view), "hello");
    assert_eq!(asked(&rig), ["fast", "slow"]);
    assert_eq!(view.counters.expect("ended").model, "gpt-slow");
}

#[tokio::test]
async fn models_that_stay_down_end_the_task_with_a_reason_and_within_a_budget() {
    let rig = Rig::new(json!({"model": ["fast", "slow"]}));
    rig.plays((0..50).map(|_| fails(ErrorClass::Connect)));
    let view = rig.ask("hi").await;
    assert_eq!(
        (view.status.state, view.status.reason.as_str()),
        (TaskState::Failed, "model.unavailable")
    );
    assert_eq!(asked(&rig), ["fast", "fast", "fast", "slow", "slow", "slow"]);
}

#[tokio::test]
async fn a_stream_cut_after_text_was_shown_is_gone_on_with() {
    let rig = Rig::new(json!({}));
    let start = vec![ModelEvent::Text("The answer ".to_owned())];
    rig.plays([Act::Break(start, ErrorClass::Cut), say("is 42.")]);
    let view = rig.ask("hi").await;
    assert_eq!(text(&view), "The answer is 42.");
    assert_eq!(view.answer.expect("an answer").cuts, [11]);
    let last = rig.asked(1).messages.pop();
    assert!(matches!(last, Some(ChatMessage::Assistant { text, .. }) if text == "The answer "));
    let used = view.counters.expect("ended");
    assert!(used.estimated && used.output_tokens > 5, "{used:?}");
}

#[tokio::test]
async fn a_stream_that_is_cut_again_and_again_ends_with_what_was_shown() {
    let rig = Rig::new(json!({}));
    let piece = || Act::Break(vec![ModelEvent::Text("more ".to_owned())], ErrorClass::Cut);
    rig.plays((0..20).map(|_| piece()));
    let view = rig.ask("hi").await;
    assert_eq!(
        (view.status.state, view.status.reason.as_str()),
        (TaskState::Failed, "model.cut")
    );
    assert!(text(&view).starts_with("more more "), "{}", text(&view));
    assert!(asked(&rig).len() <= 9);
}

#[tokio::test]
async fn the_next_model_goes_on_where_the_first_was_cut() {
    let rig = Rig::new(json!({"model": ["fast", "slow"]}));
    let start = vec![ModelEvent::Text("The answer ".to_owned())];
    rig.plays([
        fails(ErrorClass::Connect),
        fails(ErrorClass::Connect),
        Act::Break(start, ErrorClass::Cut),
        say("is 42."),
    ]);
    let view = rig.ask("hi").await;
    assert_eq!(text(&view), "The answer is 42.");
    assert_eq!(view.answer.expect("an answer").cuts, [11]);
    assert_eq!(asked(&rig), ["fast", "fast", "fast", "slow"]);
    let last = rig.asked(3).messages.pop();
    assert!(matches!(last, Some(ChatMessage::Assistant { text, .. }) if text == "The answer "));
}

#[tokio::test]
async fn answers_that_are_none_have_a_reason() {
    let stop = |reason| Act::Events(vec![ModelEvent::Stop(reason)]);
    for (act, code) in [
        (stop(StopReason::End), "model.empty"),
        (stop(StopReason::Filtered), "model.filtered"),
        (stop(StopReason::Length), "model.length"),
        (Act::Events(vec![]), "model.cut"),
    ] {
        let rig = Rig::new(json!({}));
        rig.plays([act.clone(), act.clone(), act]);
        let view = rig.ask("hi").await;
        assert_eq!(
            (view.status.state, view.status.reason.as_str()),
            (TaskState::Failed, code)
        );
    }
}
