//! A script in the user's text, for whole-path tests: the text says what the model does.
//!
//! Lines that are read (all others are ignored; with none of them the model says `You said: …`):
//! - `call SERVER/TOOL {json}` calls that tool, if it is offered; several such lines call in parallel.
//! - `then call SERVER/TOOL {json}` calls in the next round.
//! - `say TEXT` is the answer; without it the answer quotes the results of the tools.
//! - `think TEXT` is the reasoning before it.
//! - `chunks N MS` cuts the answer into N chunks, MS milliseconds apart.
//! - `fail STATUS [RETRY-AFTER]` answers with that status, `hang` never answers, `cut N` breaks after N chunks.
//! - `evil SERVER/TOOL {json}` calls a tool whether it is offered or not.
//! - `text call NAME {json}` writes a call as fenced JSON, as small models do.

use crate::{
    request::Request,
    script::{Fault, Reply, Then, ToolCall},
};
use serde_json::{Value, json};

/// What the text of `request` asks for.
#[must_use]
pub fn answer(request: &Request) -> Then {
    let plan = Plan::read(request);
    let mut reply = match plan.rounds.get(request.rounds) {
        Some(calls) if !calls.is_empty() => Reply {
            tools: calls.clone(),
            ..Reply::default()
        },
        _ => plan.last_words(request),
    };
    reply.reasoning = plan.reasoning;
    if let Some((count, ms)) = plan.chunks {
        reply.text = split(&reply.text.concat(), count);
        reply.delay_ms = ms;
    }
    Then {
        reply,
        fault: plan.fault,
    }
}

#[derive(Default)]
struct Plan {
    rounds: Vec<Vec<ToolCall>>,
    missing: Vec<String>,
    written: Option<String>,
    say: Option<String>,
    reasoning: Vec<String>,
    chunks: Option<(usize, u64)>,
    fault: Option<Fault>,
}

impl Plan {
    fn read(request: &Request) -> Self {
        let mut plan = Self::default();
        for line in request.user.lines().map(str::trim) {
            let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
            match verb {
                "call" => plan.call(request, 0, rest),
                "then" => {
                    if let Some(rest) = rest.strip_prefix("call ") {
                        plan.call(request, 1, rest);
                    }
                }
                "evil" => plan.evil(rest),
                "text" => {
                    if let Some(call) = rest.strip_prefix("call ").and_then(parse_call) {
                        let json = json!({"name": wire_name(request, &call.0).unwrap_or(call.0), "arguments": call.1});
                        plan.written = Some(format!("```json\n{json}\n```"));
                    }
                }
                "say" => plan.say = Some(rest.to_owned()),
                "think" => plan.reasoning.push(rest.to_owned()),
                "chunks" => {
                    let mut numbers = rest.split(' ').map(|n| n.parse::<u64>().unwrap_or(0));
                    let count = usize::try_from(numbers.next().unwrap_or(1)).unwrap_or(1);
                    plan.chunks = Some((count.clamp(1, 100_000), numbers.next().unwrap_or(0)));
                }
                "hang" if rest.is_empty() => plan.fault = Some(Fault::Hang),
                "cut" => {
                    if let Ok(chunks) = rest.parse() {
                        plan.fault = Some(Fault::CutAfter { chunks });
                    }
                }
                "fail" => {
                    let (status, after) = rest.split_once(' ').unwrap_or((rest, ""));
                    if let Ok(status) = status.parse() {
                        let fault = Fault::status(status);
                        plan.fault = Some(if after.is_empty() {
                            fault
                        } else {
                            fault.retry_after(after)
                        });
                    }
                }
                _ => {}
            }
        }
        plan
    }

    fn call(&mut self, request: &Request, new_round: usize, text: &str) {
        let Some((name, arguments)) = parse_call(text) else {
            return;
        };
        let Some(name) = wire_name(request, &name) else {
            self.missing.push(name);
            return;
        };
        if new_round == 1 || self.rounds.is_empty() {
            self.rounds.push(Vec::new());
        }
        if let Some(round) = self.rounds.last_mut() {
            round.push(ToolCall {
                name,
                arguments,
                raw: None,
            });
        }
    }

    fn evil(&mut self, text: &str) {
        if let Some((name, arguments)) = parse_call(text) {
            self.rounds.push(vec![ToolCall {
                name: name.replace('/', "__"),
                arguments,
                raw: None,
            }]);
        }
    }

    fn last_words(&self, request: &Request) -> Reply {
        if let (Some(written), 0) = (&self.written, request.results.len()) {
            return Reply::text(written);
        }
        if let Some(say) = &self.say {
            return Reply::text(say);
        }
        if !self.missing.is_empty() {
            return Reply::text(&format!("I have no tool named {}.", self.missing.join(", ")));
        }
        if self.written.is_some() || !self.rounds.is_empty() || !request.results.is_empty() {
            let quoted: Vec<String> = request.results.iter().map(|r| format!("\"{r}\"")).collect();
            return Reply::text(&format!("The tool said: {}", quoted.join(" and ")));
        }
        Reply::text(&format!("You said: {}", request.user))
    }
}

/// `SERVER/TOOL {json}`; the JSON may be left out.
fn parse_call(text: &str) -> Option<(String, Value)> {
    let (name, json) = text.trim().split_once(' ').unwrap_or((text.trim(), "{}"));
    let arguments = serde_json::from_str(json.trim()).ok()?;
    (!name.is_empty()).then(|| (name.to_owned(), arguments))
}

/// The offered tool that `name` means: the same name, `server__tool` or `tool` for `server/tool`, or the one that
/// ends so.
fn wire_name(request: &Request, name: &str) -> Option<String> {
    let joined = name.replace('/', "__");
    let bare = name.rsplit('/').next().unwrap_or(name);
    let suffix = format!("__{bare}");
    let offered = |fits: &dyn Fn(&str) -> bool| request.tools.iter().find(|t| fits(t)).cloned();
    offered(&|t| t == name)
        .or_else(|| offered(&|t| t == joined))
        .or_else(|| offered(&|t| t == bare))
        .or_else(|| offered(&|t| !name.contains('/') && t.ends_with(&suffix)))
}

/// Cuts `text` into at most `count` pieces of equal length.
fn split(text: &str, count: usize) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let size = chars.len().div_ceil(count).max(1);
    chars.chunks(size).map(|c| c.iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(user: &str, tools: &[&str]) -> Request {
        Request {
            user: user.to_owned(),
            tools: tools.iter().map(|t| (*t).to_owned()).collect(),
            ..Request::default()
        }
    }

    #[test]
    fn a_call_goes_to_the_offered_tool_and_its_result_is_quoted() {
        let mut asked = request("please\ncall time/now {\"tz\":\"UTC\"}", &["time__now"]);
        let then = answer(&asked);
        assert_eq!(then.reply.tools[0].name, "time__now");
        assert_eq!(then.reply.tools[0].arguments, json!({"tz": "UTC"}));
        asked.rounds = 1;
        asked.results = vec!["noon".to_owned()];
        assert_eq!(answer(&asked).reply.text, ["The tool said: \"noon\""]);
    }

    #[test]
    fn rounds_follow_each_other_and_parallel_calls_share_one() {
        let mut asked = request("call a/x\ncall a/y\nthen call a/z", &["a__x", "a__y", "a__z"]);
        assert_eq!(answer(&asked).reply.tools.len(), 2);
        asked.rounds = 1;
        assert_eq!(answer(&asked).reply.tools[0].name, "a__z");
    }

    #[test]
    fn a_tool_that_is_not_offered_is_named() {
        assert_eq!(answer(&request("call a/x {}", &["x"])).reply.tools[0].name, "x");
        let then = answer(&request("call a/x {}", &["b__x"]));
        assert_eq!(then.reply.text, ["I have no tool named a/x."]);
    }

    #[test]
    fn faults_and_chunks_are_read() {
        let then = answer(&request("say abcdef\nchunks 3 5\nfail 429 7", &[]));
        assert_eq!(then.reply.text, ["ab", "cd", "ef"]);
        assert_eq!(then.reply.delay_ms, 5);
        assert_eq!(then.fault, Some(Fault::status(429).retry_after("7")));
        assert_eq!(answer(&request("hello", &[])).reply.text, ["You said: hello"]);
    }
}
