//! `logs`: the engine's lines, as they come. A followed stream that breaks is taken up again where it was.

use super::get;
use crate::{
    api::LogLine,
    args::{Common, Format, Logs},
    client::Client,
    failure::{Exit, Failure, Outcome},
    render::{self, time},
    shell::Shell,
    socket::{Next, Subscription},
    text::line,
};
use chrono::{DateTime, Utc};
use serde_json::json;
use std::{collections::BTreeMap, io::Write as _, time::Duration};

/// The most lines of the past that the hub gives.
const MOST: u32 = 10_000;
/// The longest pause before a stream is opened again; it begins with a fraction of it and doubles.
const LONGEST: Duration = Duration::from_secs(15);
const SHORTEST: Duration = Duration::from_millis(250);

pub(super) async fn run(client: &Client, common: &Common, args: &Logs, shell: &mut Shell) -> Outcome<()> {
    let mut reader = Reader {
        client,
        format: common.output,
        args,
        seen: Seen::default(),
        connected: false,
    };
    let mut pause = SHORTEST;
    let mut told = false;
    loop {
        let shown = reader.seen.count;
        let why = match reader.read(shell).await {
            Ok(End::Done) => return Ok(()),
            Ok(End::Complete) => "the log ended".to_owned(),
            Err(failure) if args.follow && reader.connected && failure.exit == Exit::Unavailable => {
                failure.message
            }
            Err(failure) => return Err(failure),
        };
        if reader.seen.count > shown {
            (pause, told) = (SHORTEST, false);
        }
        if !told {
            writeln!(shell.err, "{}", line(&format!("note: {why}; connecting again")))?;
            told = true;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shell.interrupt.wait() => return Ok(()),
        }
        pause = (pause * 2).min(LONGEST);
    }
}

enum End {
    /// Everything that was asked for is there, or the person has seen enough.
    Done,
    /// The stream ended though it was to be followed.
    Complete,
}

struct Reader<'a> {
    client: &'a Client,
    format: Format,
    args: &'a Logs,
    seen: Seen,
    /// A stream was open once: what fails from now on is taken up again.
    connected: bool,
}

impl Reader<'_> {
    /// One stream from its opening to its end.
    async fn read(&mut self, shell: &mut Shell) -> Outcome<End> {
        let interrupt = shell.interrupt.clone();
        // A name that is not there is said before a stream is opened for it; and an agent that went away in between.
        let opened = async {
            let agent = get::agent(self.client, &self.args.agent).await?;
            // After a break everything that the hub still has is read, and what was shown is left out.
            let tail = if self.connected { MOST } else { self.args.tail };
            let variables = json!({"project": agent.project, "name": agent.name, "tail": tail,
                "follow": self.args.follow});
            let lines = Subscription::start(self.client, "AgentLogs", "agentLogs", variables).await?;
            Ok::<_, Failure>((lines, agent.placements.len() > 1))
        };
        let (mut lines, several) = tokio::select! {
            opened = opened => opened?,
            () = interrupt.wait() => return Ok(End::Done),
        };
        self.connected = true;
        self.seen.begin();
        loop {
            let next = tokio::select! {
                next = lines.next::<LogLine>() => next?,
                () = interrupt.wait() => break,
            };
            let item = match next {
                Next::Item(item) => item,
                Next::Complete if self.args.follow => return Ok(End::Complete),
                Next::Complete => return Ok(End::Done),
            };
            if self.seen.is_new(&item) {
                self.show(&item, several, shell)?;
            }
        }
        lines.stop().await;
        Ok(End::Done)
    }

    fn show(&self, item: &LogLine, several: bool, shell: &mut Shell) -> Outcome<()> {
        match self.format {
            Format::Table => shell.say(&shown(item, several))?,
            format => render::item(shell, format, item)?,
        }
        shell.flush()
    }
}

fn shown(item: &LogLine, several: bool) -> String {
    let at = item.time.map(|t| format!("{} ", time(t))).unwrap_or_default();
    let cluster = if several {
        format!("{} ", item.cluster)
    } else {
        String::new()
    };
    format!("{}\n", line(&format!("{at}{cluster}{}", item.line)))
}

/// What was shown, so that a stream that is opened again repeats nothing.
///
/// Lines of one cluster come in the order of their times, to the millisecond; of the last one it is kept how many
/// there were. What carries no time (a remark of the cluster agent) is shown as it comes.
#[derive(Debug, Default)]
struct Seen {
    count: u64,
    clusters: BTreeMap<String, Last>,
    /// How many lines of the last time this stream has repeated, by cluster.
    repeated: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Last {
    time: DateTime<Utc>,
    lines: u64,
}

impl Seen {
    /// A stream begins.
    fn begin(&mut self) {
        self.repeated = self.clusters.keys().map(|cluster| (cluster.clone(), 0)).collect();
    }

    fn is_new(&mut self, item: &LogLine) -> bool {
        let Some(time) = item.time else {
            self.count += 1;
            return true;
        };
        if let Some(repeated) = self.repeated.get_mut(&item.cluster)
            && let Some(last) = self.clusters.get(&item.cluster)
        {
            if time < last.time {
                return false;
            }
            if time == last.time && *repeated < last.lines {
                *repeated += 1;
                return false;
            }
            // The past is over: whatever comes now is new, even if the cluster's clock goes back.
            self.repeated.remove(&item.cluster);
        }
        self.count += 1;
        match self.clusters.get_mut(&item.cluster) {
            Some(last) if last.time == time => last.lines += 1,
            _ => {
                self.clusters
                    .insert(item.cluster.clone(), Last { time, lines: 1 });
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(cluster: &str, ms: i64, line: &str) -> LogLine {
        LogLine {
            cluster: cluster.to_owned(),
            time: DateTime::from_timestamp_millis(ms),
            line: line.to_owned(),
        }
    }

    fn new(seen: &mut Seen, items: &[LogLine]) -> Vec<String> {
        seen.begin();
        let new = items.iter().filter(|item| seen.is_new(item));
        new.map(|item| item.line.clone()).collect()
    }

    #[test]
    fn a_stream_that_is_opened_again_repeats_and_loses_nothing() {
        let mut seen = Seen::default();
        let past = [
            item("a", 1, "1"),
            item("a", 2, "2"),
            item("a", 2, "2"),
            item("b", 1, "b1"),
        ];
        assert_eq!(new(&mut seen, &past), ["1", "2", "2", "b1"]);
        // The same lines, then another of the same millisecond, a new one, and an engine whose clock went back.
        let again = [
            item("b", 1, "b1"),
            item("a", 1, "1"),
            item("a", 2, "2"),
            item("a", 2, "2"),
            item("a", 2, "2"),
            item("a", 3, "3"),
            item("a", 1, "back"),
            item("c", 1, "c1"),
        ];
        assert_eq!(new(&mut seen, &again), ["2", "3", "back", "c1"]);
        // An engine that was started anew has forgotten its past.
        assert_eq!(new(&mut seen, &[item("b", 9, "b2")]), ["b2"]);
    }

    #[test]
    fn what_has_no_time_is_shown() {
        let mut seen = Seen::default();
        let mut remark = item("a", 1, "skipped");
        remark.time = None;
        assert_eq!(new(&mut seen, &[remark, item("a", 5, "x")]), ["skipped", "x"]);
    }
}
