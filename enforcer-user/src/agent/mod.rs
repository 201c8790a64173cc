//! The agent: what puts keys, maps, rings and sockets together.
//!
//! Four threads matter. *handshakes* takes held frames from the kernel and decides them ([`contact`]); *upkeep* renews,
//! expires, judges again and watches the policy ([`upkeep`], [`policy`]), *heartbeat* says that both live; the tokio runtime
//! serves the admin socket and the metrics. They share one [`State`] behind a lock that is never held across I/O on anything but maps.

mod admin;
mod adopt;
mod boot;
mod clock;
mod contact;
mod datagrams;
mod fallback;
mod hand_over;
mod host_pu;
mod last_good;
mod learn;
mod names;
mod observe;
mod offline;
mod policy;
mod policy_apply;
mod profiles;
mod pus;
mod sink;
mod sources;
mod state;
mod trial;
mod unsorted;
mod updates;
mod upkeep;
mod views;
mod waiting;
mod watchdog;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use common::drop_reason::Reason;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    admin::Server,
    config::Config,
    facts::Facts,
    flow_log::FlowLog,
    hardening::{Files, Hardening},
    identity::Verifier,
    link_net,
    load::{
        Fit, Interfaces, Kernel, LoadError, LoadOptions, MapSizes, UnloadOptions, XdpMode, require_bpffs, roll_back,
        unload,
    },
    map_write::Maps,
    metrics::{Metrics, MetricsServer, RuleVerdicts},
    pulse::Pulse,
    records::Recorder,
    ring::{Handshakes, Telemetry},
    tap::Tap,
    workload::Pipeline,
};

pub use boot::{Booted, boot};
use hand_over::HandOver;
use names::NameTable;
pub(crate) use offline::flows as offline_flows;
use state::State;
pub use trial::NotConfirmed;
use trial::Trial;
use waiting::Waiting;

/// The eBPF object this agent was built with.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer.o"));

/// What every part of the agent shares.
pub(crate) struct Shared {
    config: Config,
    maps: Arc<Maps>,
    tap: Tap,
    names: Arc<NameTable>,
    log: FlowLog,
    facts: Facts,
    state: Mutex<State>,
    // Beside the state: signatures take long, and nobody shall wait for those of a flood.
    verifier: Mutex<Verifier>,
    kernel: Mutex<Kernel>,
    waiting: Waiting,
    datagrams: datagrams::Waiting,
    fallback: fallback::Fallback,
    trial: Trial,
    hand_over: HandOver,
    // Weak, because it has the agent behind it.
    pipeline: OnceLock<Weak<Pipeline>>,
    hardening: Arc<Hardening>,
    pulse: Pulse,
    ready: Arc<AtomicBool>,
    started: Instant,
}

impl Shared {
    /// A thread that panicked left the state as whole as any error return: go on.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn verifier(&self) -> MutexGuard<'_, Verifier> {
        self.verifier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What looks at PUs; none before the sources have started.
    fn pipeline(&self) -> Option<Arc<Pipeline>> {
        self.pipeline.get().and_then(Weak::upgrade)
    }

    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an agent is started.
#[derive(Default)]
pub struct Start {
    /// Everything goes back unless somebody confirms within that time; the error then is [`NotConfirmed`].
    pub confirm: Option<Duration>,
    /// Another agent still runs: this is called when all is prepared that can be without ending it, and the start goes on
    /// once it has ended.
    pub prepared: Option<Box<dyn Fn()>>,
}

/// Whether an agent of this configuration could take over what is in force; changes nothing.
///
/// # Errors
/// What would keep it from starting.
pub fn check(config: &Config) -> anyhow::Result<Fit> {
    state::own_identity(config)?;
    crate::workload::finder::check(config)?;
    // An agent would start with the copy of the last good policy: better than none, but no reason to begin with it.
    policy::Rules::read(&config.policy.paths, &::policy::ParsedFiles::default())?;
    Ok(Kernel::check(&load_options(config)?)?)
}

/// Runs the agent until it is told to stop. What it put into the kernel stays in force.
///
/// # Errors
/// What kept it from starting: configuration, keys, policy, or the kernel. A first start that fails leaves nothing in
/// the kernel; one that followed on another puts back in force what that had made.
pub fn run(config: Config, start: Start) -> anyhow::Result<()> {
    let pins = config.pin_dir();
    let first = !pins.exists();
    let made = UnloadOptions::from(&config);
    let ready = Arc::new(AtomicBool::new(false));
    let maps = pins.join("maps");
    let before = trial::Before::read(&maps);
    let ran = start_and_serve(config, ready.clone(), start);
    let not_confirmed = ran.as_ref().err().and_then(|error| error.downcast_ref::<NotConfirmed>());
    if not_confirmed.is_some_and(|trial| trial.all) {
        undo(&made);
    }
    if let Some(before) = before.filter(|_| ran.is_err() && not_confirmed.is_none() && !ready.load(Ordering::Acquire)) {
        before.restore(&maps);
    }
    if ran.is_err() && !first && !ready.load(Ordering::Acquire) {
        match roll_back(&made.bpffs) {
            Ok(true) => tracing::warn!("the programs of the former agent are in force again"),
            // Where another agent runs, this one has changed nothing.
            Ok(false) | Err(LoadError::Busy { .. }) => {}
            Err(error) => tracing::error!(%error, "what was in force before is not wholly put back"),
        }
    }
    // One that was ready has enforced something: that stays in force however it ended.
    if ran.is_err() && first && !ready.load(Ordering::Acquire) && pins.exists() {
        if let Err(error) = unload(&made) {
            tracing::debug!(%error, "a failed start is not wholly undone");
        }
    }
    ran
}

/// Unloads everything; what of this agent still holds the lock is about to end.
fn undo(made: &UnloadOptions) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match unload(made) {
            Ok(_) => return tracing::info!("unloaded"),
            Err(LoadError::Busy { .. }) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => return tracing::error!(%error, "not everything is unloaded; run `enforcer unload`"),
        }
    }
}

fn start_and_serve(config: Config, ready: Arc<AtomicBool>, begin: Start) -> anyhow::Result<()> {
    let policy_seen = upkeep::policy_stamp(&config.policy.paths);
    // Mounting takes a capability that nothing later does.
    require_bpffs(&config.pin_dir())?;
    let hardening = Hardening::begin(&config);
    let shared = start(config, hardening, ready, begin)?;
    let served = run_until_told(&shared, policy_seen);
    let served = match (trial::withdraw(&shared), served) {
        (Some(not_confirmed), Ok(())) => Err(not_confirmed.into()),
        (Some(not_confirmed), Err(error)) => Err(error.context(not_confirmed)),
        (None, served) => served,
    };
    upkeep::write_records(&shared, true);
    // What the kernel holds for a successor waits for it; if none comes, the last sign of life grows old.
    if shared.hand_over.is_asked() {
        return served;
    }
    if let Err(error) = shared.state().config.leave() {
        tracing::warn!(%error, "the kernel was not told that the agent ends");
    }
    served
}

fn run_until_told(shared: &Arc<Shared>, policy_seen: upkeep::PolicyStamp) -> anyhow::Result<()> {
    host_pu::start(shared).context("the host PU")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let metrics = Arc::new(Metrics::new(Arc::new(admin::Stats(shared.clone())))?);
    metrics.register(shared.facts.board().collector())?;
    metrics.register(shared.fallback.collector())?;
    if let Some(verdicts) = shared.log.verdicts() {
        metrics.register(verdicts.collector())?;
    }
    let on_held = {
        let (shared, metrics) = (shared.clone(), metrics.clone());
        move |held: &common::event::Held| contact::decide(&shared, &metrics, held)
    };
    let on_turn = {
        let (hardening, turning) = (shared.hardening.clone(), shared.pulse.expect("handshakes", patience(shared)));
        let mut confined = false;
        move || {
            if !std::mem::replace(&mut confined, true) {
                hardening.confine("handshakes", Files::Nothing);
            }
            turning.turn();
        }
    };
    let maps = shared.maps.directory().to_owned();
    let handshakes = Handshakes::start(&maps, on_turn, on_held).context("the handshake ring")?;
    let telemetry = Telemetry::open(&maps).context("the telemetry ring")?;
    let upkeep = upkeep::start(shared.clone(), telemetry, handshakes, policy_seen)?;
    let watch = {
        let shared = shared.clone();
        link_net::watch(move |change| upkeep::interface_changed(&shared, change)).context("watching interfaces")?
    };
    let sources = sources::start(shared).context("the sources of PUs")?;
    let exporter = export(shared, metrics)?;
    let served = runtime.block_on(async {
        tokio::select! {
            served = serve(shared.clone()) => served,
            thread = ended(|| upkeep.ended()) => Err(anyhow::anyhow!(
                "the thread `{thread}` ended; the agent must be started again (enforcement goes on in the kernel)"
            )),
        }
    });
    drop(exporter);
    drop(sources);
    drop(watch);
    drop(upkeep);
    served
}

/// Everything up to readiness: keys and policy first, so that a mistake there changes nothing in the kernel.
fn start(config: Config, hardening: Hardening, ready: Arc<AtomicBool>, begin: Start) -> anyhow::Result<Arc<Shared>> {
    let (identity, verifier) = state::own_identity(&config)?;
    crate::workload::finder::check(&config)?;
    let enforced_before = config.pin_dir().join("maps/CONFIG").exists();
    let beginning = policy::begin(&config, enforced_before)?;
    let first = !config.pin_dir().exists();
    let kernel = Kernel::begin(&load_options(&config)?, begin.prepared.as_deref())?;
    let maps = Arc::new(Maps::open(&kernel.pins().maps)?);
    let tap = Tap::open(&config.datapath.tap)?;
    let names = Arc::new(NameTable::default());
    let mut state = State::new(&config, identity, maps.clone(), names.clone())?;
    let trial = state.begin_trial(&config, begin.confirm, first)?;
    state.configure(&config)?;
    let (rules, problem) = match beginning {
        policy::Beginning::Policy(rules) => (Some(rules), None),
        policy::Beginning::LastGood(rules, problem) => (Some(rules), Some(problem)),
        policy::Beginning::Nothing(problem) => (None, Some(problem)),
    };
    state.policy_error = problem;
    let settled = rules.is_some();
    if let Some(rules) = &rules {
        state.compile(rules)?;
        state.recall_names(&config.paths.socket);
    }
    let distrusted = adopt::adopt(&mut state, &verifier)?;
    if settled {
        state.settle()?;
    } else {
        // The verdicts stay as they are, so their rules keep their names.
        names.set_rules(names::saved_rules(&config.paths.socket).into_iter());
        state.frozen = true;
    }
    state.config.beat()?;
    let recorder = Recorder::start(&config.records, state.own.id().name(), names.clone()).context("writing records")?;
    let verdicts = RuleVerdicts::new(config.metrics.rule_series, names.clone())?;
    observe::announce(&state);
    let hardening = Arc::new(hardening);
    let fallback_port = config.fallback_port();
    let shared = Arc::new(Shared {
        log: FlowLog::new(names.clone()).with_recorder(recorder).with_verdicts(verdicts),
        facts: Facts::new(&config, &hardening)?,
        config,
        maps,
        tap,
        names,
        state: Mutex::new(state),
        kernel: Mutex::new(kernel),
        verifier: Mutex::new(verifier),
        waiting: Waiting::default(),
        datagrams: datagrams::Waiting::default(),
        fallback: fallback::Fallback::new(fallback_port)?,
        trial: Trial::new(trial),
        hand_over: HandOver::default(),
        pipeline: OnceLock::new(),
        hardening,
        pulse: Pulse::default(),
        ready,
        started: Instant::now(),
    });
    shared.kernel().attach_tap(&shared.tap)?;
    pus::attach_interfaces(&shared);
    policy::cut_where(&shared, Reason::Revoked, |flow| distrusted.contains(&flow.session));
    if let Some(rules) = rules {
        policy::save_rule_names(&shared);
        trial::keep_policy(&shared, rules.texts);
    }
    crate::sys::trim_heap();
    Ok(shared)
}

fn load_options(config: &Config) -> anyhow::Result<LoadOptions> {
    let datapath = &config.datapath;
    let all = datapath.interfaces.iter().any(|name| name == crate::config::AUTO);
    Ok(LoadOptions {
        object: OBJECT.into(),
        bpffs: config.paths.bpffs.clone(),
        cgroup: config.cgroup_root()?,
        interfaces: if all { Interfaces::All } else { Interfaces::Named(datapath.interfaces.clone()) },
        xdp: match datapath.xdp {
            crate::config::Xdp::Auto => XdpMode::Auto,
            crate::config::Xdp::Native => XdpMode::Native,
            crate::config::Xdp::Generic => XdpMode::Generic,
            crate::config::Xdp::Off => XdpMode::Off,
        },
        sizes: MapSizes {
            flows: Some(datapath.max_flows),
            pairs: Some(datapath.max_pairs),
            intervals: Some(datapath.max_intervals),
            handshake_ring_bytes: Some(datapath.handshake_ring_bytes),
            telemetry_ring_bytes: Some(datapath.telemetry_ring_bytes),
            ..MapSizes::default()
        },
        clsact: false,
    })
}

/// How long a loop may be silent: several times what the kernel waits for a sign of life.
fn patience(shared: &Shared) -> Duration {
    shared.config.datapath.agent_timeout.saturating_mul(5)
}

/// Opens the metrics' endpoint and serves it in a thread of its own: it tells how the agent fares even if all else hangs.
fn export(shared: &Shared, metrics: Arc<Metrics>) -> anyhow::Result<Option<Exporter>> {
    let Some(address) = shared.config.metrics_address() else { return Ok(None) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let server = runtime.block_on(MetricsServer::bind(address))?;
    host_pu::serves(shared, server.as_fd());
    let hardening = shared.hardening.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("metrics".into()).spawn(move || {
        hardening.confine("metrics", Files::Reading);
        runtime.block_on(async {
            tokio::select! {
                () = server.serve(metrics) => {}
                _ = stopped => {}
            }
        });
    })?;
    Ok(Some(Exporter { stop: Some(stop), thread: Some(thread) }))
}

/// The thread that answers for metrics. It ends with this, because it has the agent behind it.
struct Exporter {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the metrics panicked");
        }
    }
}

/// Waits until a thread has ended that must not; its name.
async fn ended(look: impl Fn() -> Option<String>) -> String {
    loop {
        if let Some(thread) = look() {
            return thread;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn serve(shared: Arc<Shared>) -> anyhow::Result<()> {
    let socket: PathBuf = shared.config.paths.socket.clone();
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let server = Server::bind(&socket, shared.config.admin.group.as_deref())?;
    let turning = shared.pulse.expect("admin", patience(&shared));
    tokio::spawn(async move {
        loop {
            turning.turn();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    shared.hardening.complete(&shared.config);
    trial::ready(&shared)?;
    if let Err(error) = shared.kernel().settle() {
        tracing::warn!(%error, "what the former agent had in force is kept beside");
    }
    shared.ready.store(true, Ordering::Release);
    tracing::info!(name = %shared.state().own.id(), "enforcing");
    let _watchdog = watchdog::start(&shared)?;
    tokio::select! {
        () = server.serve(Arc::new(admin::Admin(shared.clone()))) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = shared.trial.over() => {}
        () = shared.hand_over.asked() => {
            tracing::info!("ending: another agent takes over");
            return Ok(());
        }
    }
    if shared.trial.left().is_some() {
        return Ok(());
    }
    tracing::info!("ending; enforcement goes on in the kernel (`enforcer unload` ends it)");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_dies_is_noticed() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let thread = std::thread::Builder::new().name("handshakes".into()).spawn(|| {}).unwrap();
        let name = runtime.block_on(ended(|| thread.is_finished().then(|| thread.thread().name().unwrap().to_owned())));
        assert_eq!(name, "handshakes");
    }
}
