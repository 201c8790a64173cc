//! Plugins are asked about every PU once its identity is complete, again when its tags change, and as often as configured.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::Teller;
use crate::{
    admin::PuTarget,
    config::Plugin,
    facts::{
        FactError,
        board::Board,
        plugin::{self, Question, Subject},
    },
    identity::Tags,
    workload::{
        KnownPu, PuSink, Source, Stop, TagSet, TagSource,
        tags::{Sifted, note_left_out},
    },
};

/// PUs are looked for that often.
const TICK: Duration = Duration::from_millis(500);
/// Plugins that run at once.
const TOGETHER: usize = 4;
/// A plugin that failed is asked again after that long.
const RETRY: Duration = Duration::from_secs(30);
/// Tags that change all the time make a plugin run that often at most.
const CHANGED: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(super) struct Plugins {
    plugins: Arc<[Plugin]>,
    board: Arc<Board>,
}

/// What one plugin said of one PU.
#[derive(Debug)]
struct Said {
    tags: Tags,
    about: u64,
    when: Instant,
    failed: bool,
}

/// By PU and plugin.
type Answers = HashMap<(String, usize), Said>;

impl Plugins {
    pub fn new(plugins: &[Plugin], board: Arc<Board>) -> Option<Self> {
        plugins.iter().for_each(|plugin| board.expect("plugin", &plugin.name));
        (!plugins.is_empty()).then(|| Self { plugins: plugins.into(), board })
    }

    /// The next few that are due.
    fn due(&self, pus: &[KnownPu], answers: &Answers) -> Vec<(usize, usize)> {
        let mut due = Vec::new();
        for (pu, known) in pus.iter().enumerate().filter(|(_, known)| known.complete) {
            let about = about(&known.tags);
            for (number, plugin) in self.plugins.iter().enumerate() {
                let is_due = answers.get(&(known.key.clone(), number)).is_none_or(|said| {
                    let age = said.when.elapsed();
                    (said.failed && age >= RETRY)
                        || (said.about != about && age >= CHANGED)
                        || (!plugin.every.is_zero() && age >= plugin.every)
                });
                if is_due {
                    due.push((pu, number));
                }
                if due.len() == TOGETHER {
                    return due;
                }
            }
        }
        due
    }

    async fn ask(&self, pus: &[KnownPu], due: Vec<(usize, usize)>, answers: &mut Answers) {
        let mut running = JoinSet::new();
        for (pu, number) in due {
            let (known, plugins) = (pus[pu].clone(), self.plugins.clone());
            running.spawn(async move {
                let answer = ask(&plugins[number], &known).await;
                (known, number, answer)
            });
        }
        while let Some(ended) = running.join_next().await {
            let Ok((known, number, answer)) = ended else { continue };
            let (tags, failed) = self.take(&self.plugins[number].name, &known, answer);
            let said = Said { tags, about: about(&known.tags), when: Instant::now(), failed };
            answers.insert((known.key, number), said);
        }
    }

    fn take(&self, name: &str, known: &KnownPu, answer: Result<Sifted, FactError>) -> (Tags, bool) {
        match answer {
            Ok(Sifted { tags, refused }) => {
                note_left_out(TagSource::Plugin, refused.len());
                for error in &refused {
                    let error = FactError::untrusted(format!("plugin {name}"), error.to_string());
                    self.board.wrong("plugin", name, &error);
                }
                if refused.is_empty() {
                    self.board.right("plugin", name, format!("{} tags of {}", tags.len(), known.name));
                }
                (tags, false)
            }
            Err(error) => {
                self.board.wrong("plugin", name, &error);
                (Tags::new(), true)
            }
        }
    }
}

impl Source for Plugins {
    fn name(&self) -> &'static str {
        "plugins"
    }

    fn run(&mut self, sink: Arc<dyn PuSink>, stop: &Stop) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut teller = Teller::default();
        let mut answers = Answers::new();
        loop {
            let pus = sink.known("");
            teller.keep(&pus);
            answers.retain(|(key, _), _| pus.iter().any(|pu| pu.key == *key));
            let due = self.due(&pus, &answers);
            let more = due.len() == TOGETHER;
            let asked: Vec<usize> = due.iter().map(|(pu, _)| *pu).collect();
            runtime.block_on(async {
                tokio::select! {
                    () = self.ask(&pus, due, &mut answers) => {}
                    // What runs is killed then.
                    () = stopped(stop) => {}
                }
            });
            for pu in asked.into_iter().map(|pu| &pus[pu]) {
                teller.tell(&*sink, pu, TagSource::Plugin, self.together(&pu.key, &answers));
            }
            if stop.wait(if more { Duration::ZERO } else { TICK }) {
                return Ok(());
            }
        }
    }
}

impl Plugins {
    /// What all plugins say of a PU.
    fn together(&self, key: &str, answers: &Answers) -> Tags {
        let mut all = Tags::new();
        for number in 0..self.plugins.len() {
            let said = answers.get(&(key.to_owned(), number));
            for (key, values) in said.into_iter().flat_map(|said| &said.tags) {
                all.entry(key.clone()).or_default().extend(values.iter().cloned());
            }
        }
        all
    }
}

async fn stopped(stop: &Stop) {
    while !stop.is_set() {
        tokio::time::sleep(TICK / 5).await;
    }
}

async fn ask(plugin: &Plugin, known: &KnownPu) -> Result<Sifted, FactError> {
    let target = match &known.target {
        PuTarget::Cgroup(path) => format!("cgroup {}", path.display()),
        PuTarget::Interface(name) => format!("interface {name}"),
        PuTarget::Command => "command".into(),
    };
    let tags = without_plugins(&known.tags);
    let subject =
        Subject { id: &known.id, name: &known.name, namespace: &known.namespace, target: &target, tags: &tags };
    plugin::ask(plugin, &Question { version: 1, pu: subject }).await
}

/// What a plugin is told: it must not hear of itself, or it would be asked about its own answer.
fn without_plugins(tags: &TagSet) -> Tags {
    let mut told: BTreeMap<String, std::collections::BTreeSet<String>> = Tags::new();
    for (_, key, value) in tags.iter().filter(|(source, _, _)| *source != TagSource::Plugin) {
        told.entry(key.into()).or_default().insert(value.into());
    }
    told
}

fn about(tags: &TagSet) -> u64 {
    let mut hasher = DefaultHasher::new();
    without_plugins(tags).hash(&mut hasher);
    hasher.finish()
}
