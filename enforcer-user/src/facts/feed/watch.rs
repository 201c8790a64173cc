//! Reading a feed again when it changes: files by inotify, addresses by conditional GET. What is broken stays as it was.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

use super::{Documents, Feed};
use crate::{
    config,
    facts::{
        FactError,
        http::{Answer, Client},
    },
};

/// Files are looked at that often even without a notice: some file systems give none.
const LOOK: Duration = Duration::from_secs(5);

/// The sources of a feed and what was last read of each.
#[derive(Debug)]
pub struct Reader {
    config: config::Feed,
    client: Client,
    sources: Vec<Source>,
    notices: Option<Inotify>,
    looked: Option<Instant>,
}

/// One configured source.
#[derive(Debug)]
struct Source {
    place: Place,
    documents: Documents,
    trouble: Option<FactError>,
    watched: bool,
}

#[derive(Debug)]
enum Place {
    Path { path: PathBuf, seen: Vec<Seen> },
    Url { url: String, asked: Option<Instant>, last: Answer },
}

/// A file, its time and its length.
type Seen = (PathBuf, Option<SystemTime>, u64);

/// What [`Reader::refresh`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// The feed differs from before.
    pub changed: bool,
    /// The sources that were looked at, by their place in the configuration.
    pub looked_at: Vec<usize>,
}

/// How a source fares.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceState {
    /// As configured.
    pub source: String,
    /// Images and binaries it knows.
    pub entries: usize,
    /// Why what it says now is not in force, if so.
    pub trouble: Option<FactError>,
}

impl Reader {
    /// Nothing is read until [`Self::refresh`].
    pub fn new(config: &config::Feed) -> Self {
        let client = Client { timeout: config.timeout, limit: config.max_bytes, ca: config.ca.clone() };
        let source = |place: &String| {
            let place = if place.contains("://") {
                Place::Url { url: place.clone(), asked: None, last: Answer::default() }
            } else {
                Place::Path { path: place.into(), seen: Vec::new() }
            };
            Source { place, documents: Documents::new(), trouble: None, watched: false }
        };
        let notices = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        Self {
            config: config.clone(),
            client,
            sources: config.sources.iter().map(source).collect(),
            notices,
            looked: None,
        }
    }

    /// Waits until there may be something new, at most that long.
    pub fn wait(&mut self, patience: Duration) {
        let Some(notices) = &self.notices else { return std::thread::sleep(patience) };
        let mut descriptors = [PollFd::new(notices.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        if poll(&mut descriptors, timeout).is_ok_and(|ready| ready > 0) {
            // What happened does not matter: everything is looked at.
            while notices.read_events().is_ok_and(|events| !events.is_empty()) {}
            self.looked = None;
        }
    }

    /// Reads what has changed. What is broken keeps what it said before.
    pub fn refresh(&mut self) -> Refreshed {
        let look = self.looked.is_none_or(|looked| looked.elapsed() >= LOOK);
        if look {
            self.looked = Some(Instant::now());
        }
        let mut refreshed = Refreshed::default();
        for (number, source) in self.sources.iter_mut().enumerate() {
            let (changed, trouble) = match &mut source.place {
                Place::Path { .. } if !look => continue,
                Place::Path { path, seen } => {
                    // A directory that went may have come back as another one.
                    source.watched &= path.exists();
                    if !source.watched {
                        source.watched = self.notices.as_ref().is_some_and(|notices| watch(notices, path));
                    }
                    read_files(path, seen, &mut source.documents, self.config.max_bytes)
                }
                Place::Url { asked, .. } if asked.is_some_and(|asked| asked.elapsed() < self.config.refresh) => {
                    continue;
                }
                Place::Url { url, asked, last } => {
                    *asked = Some(Instant::now());
                    read_url(&self.client, url, last, &mut source.documents)
                }
            };
            source.trouble = trouble;
            refreshed.changed |= changed;
            refreshed.looked_at.push(number);
        }
        refreshed
    }

    /// All sources together.
    pub fn feed(&self) -> Feed {
        let mut feed = Feed::default();
        self.sources.iter().flat_map(|source| source.documents.values()).for_each(|document| feed.merge(document));
        feed
    }

    /// How the source of this number fares.
    pub fn state(&self, number: usize) -> SourceState {
        let source = self.sources.get(number);
        SourceState {
            source: self.config.sources.get(number).cloned().unwrap_or_default(),
            entries: source.map_or(0, |source| source.documents.values().map(Feed::len).sum()),
            trouble: source.and_then(|source| source.trouble.clone()),
        }
    }
}

fn watch(notices: &Inotify, path: &Path) -> bool {
    let changes = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF;
    // A file is replaced by renaming another one over it: its directory hears of that.
    let directory = if path.is_dir() { Some(path) } else { path.parent() };
    directory.is_some_and(|directory| notices.add_watch(directory, changes).is_ok())
}

/// Reads the files that have changed. A broken one keeps what it said before; one that is gone says nothing any more.
fn read_files(path: &Path, seen: &mut Vec<Seen>, documents: &mut Documents, limit: usize) -> (bool, Option<FactError>) {
    let unreadable = |path: &Path, error: io::Error| {
        FactError::configuration(path.display().to_string(), format!("cannot be read: {error}"))
    };
    let files = match files(path) {
        Ok(files) => files,
        // Not even a list: that is no statement about anything.
        Err(error) => return (false, Some(unreadable(path, error))),
    };
    let mut broken = Vec::new();
    let mut changed = false;
    let names: Vec<String> = files.iter().map(|(file, _, _)| file.display().to_string()).collect();
    let before = documents.len();
    documents.retain(|name, _| names.contains(name));
    changed |= documents.len() != before;
    for (stamp, name) in files.iter().zip(names) {
        let (file, _, length) = stamp;
        if seen.contains(stamp) {
            continue;
        }
        let read = if *length > limit as u64 {
            Err(FactError::malformed(&name, format!("is longer than {limit} bytes (`feed.max_bytes`)")))
        } else {
            std::fs::read(file).map_err(|error| unreadable(file, error)).and_then(|json| Feed::parse(&name, &json))
        };
        match read {
            Ok(feed) => changed |= documents.insert(name, feed.clone()).as_ref() != Some(&feed),
            Err(error) => broken.push((file.clone(), error)),
        }
    }
    *seen = files;
    // What is broken is read again, so that its trouble stays known as long as it is there.
    seen.retain(|(file, _, _)| broken.iter().all(|(broken, _)| broken != file));
    (changed, broken.into_iter().next().map(|(_, error)| error))
}

fn files(path: &Path) -> io::Result<Vec<Seen>> {
    let meta = std::fs::metadata(path)?;
    if !meta.is_dir() {
        return Ok(vec![(path.into(), meta.modified().ok(), meta.len())]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        if file.extension().is_some_and(|ending| ending == "json")
            && let Ok(meta) = std::fs::metadata(&file)
        {
            files.push((file, meta.modified().ok(), meta.len()));
        }
    }
    files.sort();
    Ok(files)
}

fn read_url(client: &Client, url: &str, last: &mut Answer, documents: &mut Documents) -> (bool, Option<FactError>) {
    let mut headers = vec![("accept", "application/json")];
    headers.extend(last.etag.as_deref().map(|etag| ("if-none-match", etag)));
    headers.extend(last.last_modified.as_deref().map(|time| ("if-modified-since", time)));
    let answer = match client.get(url, &headers) {
        Ok(answer) if answer.status == 304 => return (false, None),
        Ok(answer) => answer,
        Err(error) => return (false, Some(error)),
    };
    match Feed::parse(url, &answer.body) {
        Ok(feed) => {
            *last = Answer { body: Vec::new(), ..answer };
            (documents.insert(url.into(), feed.clone()).as_ref() != Some(&feed), None)
        }
        Err(error) => (false, Some(error)),
    }
}
