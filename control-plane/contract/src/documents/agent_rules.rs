//! Rules of `kind: Agent`.

use super::{
    AgentSpec, Instructions, Limits, Metadata, Mode, ModelList, Placement, Reference, Resources, Runtime,
    Template, ToolUse,
    problem::{ProblemCode, nearest},
    rules::{Report, labels, quoted},
    template::{Piece, is_variable, known_variables, pieces},
    tool_server_rules::image_name,
    tree::{Position, Value, join, segment, shorten},
};
use serde_json::Value as Json;

/// Longest time of one task that a document may ask for.
const LONGEST_TASK_S: u64 = 7 * 24 * 3600;

pub(super) fn check(metadata: &Metadata, spec: &AgentSpec, report: &mut Report<'_>) {
    match &spec.instructions {
        Instructions::Text(text) => report.not_blank("spec.instructions", text),
        Instructions::Template(template) => check_template(template, report),
    }
    if let ModelList::Several(models) = &spec.model {
        if models.is_empty() {
            report.wrong("spec.model", "at least one model", "an empty list");
        }
        report.distinct(models, |i| format!("spec.model[{i}]"));
    }
    report.distinct(spec.tools.iter().map(|t| &t.server), |i| {
        format!("spec.tools[{i}].server")
    });
    for (i, tool) in spec.tools.iter().enumerate() {
        tool_use(i, tool, report);
    }
    report.distinct(spec.agents.iter().map(|a| &a.name), |i| {
        format!("spec.agents[{i}].name")
    });
    for (i, agent) in spec.agents.iter().enumerate() {
        let Reference { project, name } = &agent.name;
        if *name == metadata.name && (project.is_none() || *project == metadata.project) {
            report.wrong(
                &format!("spec.agents[{i}].name"),
                "another agent",
                "this agent itself",
            );
        }
    }
    limits(&spec.limits, report);
    modes(&spec.input, "spec.input", report);
    modes(&spec.output, "spec.output", report);
    if let Some(schema) = &spec.output_schema {
        output_schema(schema, report);
    }
    placement(&spec.placement, report);
    runtime(&spec.runtime, report);
}

fn check_template(template: &Template, report: &mut Report<'_>) {
    let path = "spec.instructions.template";
    report.not_blank(path, &template.template);
    for name in template.variables.keys().filter(|name| !is_variable(name)) {
        let here = join("spec.instructions.variables", &segment(name));
        report.wrong(
            &here,
            "a variable's name: a letter or _, then letters, digits and _",
            quoted(name),
        );
    }
    let pieces = match pieces(&template.template) {
        Ok(pieces) => pieces,
        Err(error) => {
            return at_line(error.line, report, error.expected, error.found, None);
        }
    };
    for (line, piece) in pieces {
        match piece {
            Piece::Variable(name) if !template.variables.contains_key(name) => {
                let hint = nearest(name, template.variables.keys().map(String::as_str));
                let expected = known_variables(&template.variables);
                at_line(
                    line,
                    report,
                    expected,
                    format!("the variable {}", shorten(name)),
                    hint,
                );
            }
            Piece::Include(name) if name.parse::<Reference>().is_err() => {
                let expected = "the name of a Prompt, or project/name".to_owned();
                at_line(line, report, expected, quoted(name), None);
            }
            _ => {}
        }
    }
}

/// A finding on a line of the template: the line of the file where the template is written with `|`.
fn at_line(line: u32, report: &mut Report<'_>, expected: String, found: String, hint: Option<String>) {
    let path = "spec.instructions.template";
    let node = ["spec", "instructions", "template"]
        .iter()
        .try_fold(report.node, |node, key| node.get(key));
    let block = node.is_some_and(|n| matches!(n.value, Value::Text { block: true, .. }));
    let place = node.and_then(|n| n.at).filter(|_| block);
    let finding = report.say(ProblemCode::Template, path, expected, found);
    finding.hint = hint;
    match place {
        Some(at) => {
            finding.at = Some(Position {
                line: at.line + line - 1,
                column: 1,
            })
        }
        None => finding.found = format!("{} on line {line} of the template", finding.found),
    }
}

fn tool_use(index: usize, tool: &ToolUse, report: &mut Report<'_>) {
    let path = format!("spec.tools[{index}]");
    let all = tool.allow.iter().any(|name| name == "*");
    if tool.allow.is_empty() {
        report.wrong(
            &join(&path, "allow"),
            "at least one tool's name, or \"*\" for all",
            "an empty list",
        );
    }
    if all && tool.allow.len() > 1 {
        report.wrong(
            &join(&path, "allow"),
            "names, or \"*\" alone",
            "\"*\" beside names",
        );
    }
    for (list, names) in [("allow", &tool.allow), ("approve", &tool.approve)] {
        report.distinct(names, |i| format!("{path}.{list}[{i}]"));
        for (i, name) in names.iter().enumerate() {
            report.not_blank(&format!("{path}.{list}[{i}]"), name);
        }
    }
    if all {
        return;
    }
    for (i, name) in tool.approve.iter().enumerate() {
        if name != "*" && !tool.allow.contains(name) {
            let expected = format!("a tool that allow names ({})", shorten(&tool.allow.join(", ")));
            let hint = nearest(name, tool.allow.iter().map(String::as_str));
            let here = format!("{path}.approve[{i}]");
            report
                .say(ProblemCode::WrongValue, &here, expected, quoted(name))
                .hint = hint;
        }
    }
}

fn limits(limits: &Limits, report: &mut Report<'_>) {
    let mut at_least_one = |path: &str, value: u64| {
        if value == 0 {
            report.wrong(path, "a whole number from 1", "0");
        }
    };
    at_least_one("spec.limits.steps", limits.steps.into());
    at_least_one("spec.limits.tokens", limits.tokens.0);
    at_least_one("spec.limits.sessions", limits.sessions.into());
    let wall = limits.wall_time;
    if wall.get().is_zero() || wall.get().as_secs() > LONGEST_TASK_S {
        report.wrong(
            "spec.limits.wallTime",
            "a duration above zero, at most 168h",
            wall.to_string(),
        );
    }
    if let Some(cost) = limits.cost.as_ref().filter(|c| c.micros == 0) {
        report.wrong("spec.limits.cost", "an amount above zero", cost.to_string());
    }
}

fn modes(modes: &[Mode], path: &str, report: &mut Report<'_>) {
    if modes.is_empty() {
        report.wrong(path, "at least one of text, file", "an empty list");
    }
    for (i, mode) in modes.iter().enumerate() {
        if modes[..i].contains(mode) {
            report.wrong(
                &format!("{path}[{i}]"),
                "each item once",
                "the same a second time",
            );
        }
    }
}

fn output_schema(schema: &Json, report: &mut Report<'_>) {
    let path = "spec.outputSchema";
    if !schema.is_object() {
        return report.wrong(path, "a JSON Schema: a mapping", "another value");
    }
    if let Err(error) = jsonschema::meta::validate(schema) {
        let inner = pointer_path(path, &error.instance_path().to_string());
        let expected = format!("a valid JSON Schema ({})", shorten(&error.to_string()));
        return report.wrong(&inner, expected, "an invalid one");
    }
    // Builds without a retriever: a `$ref` to anywhere else is an error here.
    if let Err(error) = jsonschema::validator_for(schema) {
        let expected = "a JSON Schema that refers to nothing outside itself and has valid patterns";
        report.wrong(path, expected, shorten(&error.to_string()));
    }
}

/// A JSON pointer below `path` as a path of ours.
fn pointer_path(path: &str, pointer: &str) -> String {
    pointer.split('/').skip(1).fold(path.to_owned(), |path, step| {
        let step = step.replace("~1", "/").replace("~0", "~");
        match step.parse::<usize>() {
            Ok(index) => format!("{path}[{index}]"),
            Err(_) => join(&path, &segment(&step)),
        }
    })
}

fn placement(placement: &Placement, report: &mut Report<'_>) {
    report.distinct(&placement.clusters, |i| format!("spec.placement.clusters[{i}]"));
    let Some(selector) = &placement.selector else {
        return;
    };
    if !placement.clusters.is_empty() {
        report.wrong("spec.placement", "clusters or selector", "both");
    }
    if selector.match_labels.is_empty() {
        let expected = "at least one label: an empty selector would mean every cluster";
        report.wrong("spec.placement.selector.matchLabels", expected, "none");
    }
    labels(
        &selector.match_labels,
        "spec.placement.selector.matchLabels",
        report,
    );
}

fn runtime(runtime: &Runtime, report: &mut Report<'_>) {
    if runtime.replicas == 0 {
        let expected = "a whole number from 1 (an agent is stopped by an empty placement)";
        report.wrong("spec.runtime.replicas", expected, "0");
    }
    resources(&runtime.resources, report);
    match (&runtime.engine.image, runtime.engine.port) {
        (Some(image), port) => {
            image_name(image, "spec.runtime.engine.image", report);
            if port.is_none_or(|p| p == 0) {
                report.missing(
                    "spec.runtime.engine.port",
                    "the port on which the image serves A2A",
                );
            }
        }
        (None, Some(_)) => report.missing("spec.runtime.engine.image", "the image that serves on this port"),
        (None, None) => {}
    }
}

fn resources(resources: &Resources, report: &mut Report<'_>) {
    let pairs = [
        ("cpu", &resources.requests.cpu, &resources.limits.cpu),
        ("memory", &resources.requests.memory, &resources.limits.memory),
    ];
    for (name, request, limit) in pairs {
        if limit.as_ref().is_some_and(|l| l.milli() == 0) {
            report.wrong(
                &format!("spec.runtime.resources.limits.{name}"),
                "a quantity above zero",
                "0",
            );
        }
        if let (Some(request), Some(limit)) = (request, limit)
            && request.milli() > limit.milli()
        {
            let expected = format!("at most the limit, {limit}");
            report.wrong(
                &format!("spec.runtime.resources.requests.{name}"),
                expected,
                request.to_string(),
            );
        }
    }
}
