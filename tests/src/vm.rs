//! A virtual machine on another kernel than this machine's: it boots in seconds on a throw-away view of this very root, and runs one command.
//!
//! The kernel's image and modules are unpacked by `cargo xtask setup --tests`. The initial file system holds a shell, the modules that the root needs and
//! a script; the root is this machine's, read only, under a layer of memory. Nothing the command writes stays.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Modules behind the root: a 9P file system over virtio, and the layer above it.
const ROOT_MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
/// What the laboratory makes, of modules that nothing loads by itself.
const LAB_MODULES: &str = "tun veth bridge";

/// A kernel that was unpacked for the tests.
#[derive(Clone, Debug)]
pub struct GuestKernel {
    directory: PathBuf,
    release: String,
}

/// What a command in the virtual machine left behind.
#[derive(Clone, Debug)]
pub struct GuestOutput {
    /// Its exit code.
    pub code: i32,
    /// What it wrote, standard output and error alike.
    pub text: String,
    /// From the start of the machine to its end.
    pub took: Duration,
}

impl GuestKernel {
    /// The newest unpacked kernel whose release starts so, such as `6.1.`.
    pub fn find(release: &str) -> Result<Self> {
        let own = std::env::current_exe().context("cannot tell where this program is")?;
        let unpacked = own.ancestors().map(|directory| directory.join("kernels")).find(|path| path.is_dir());
        let entries = unpacked.iter().flat_map(fs::read_dir).flatten().flatten();
        let mut fitting: Vec<_> =
            entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(release)).collect();
        fitting.sort_by_key(fs::DirEntry::file_name);
        let entry = fitting
            .pop()
            .with_context(|| format!("no kernel {release} is unpacked; run `cargo xtask setup --tests`"))?;
        Ok(Self { directory: entry.path(), release: entry.file_name().to_string_lossy().into_owned() })
    }

    /// Its release, as uname(1) tells it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Boots it, runs `command` there as root, and waits until the machine is off, at most `limit`.
    pub fn run(&self, command: &[&str], limit: Duration) -> Result<GuestOutput> {
        let directory = Scratch::new()?;
        let initial = directory.0.join("initial.cpio");
        fs::write(&initial, self.initial_files(command)?).context("cannot write the initial file system")?;
        let (console, output) = (directory.0.join("console"), directory.0.join("output"));
        let began = Instant::now();
        // Debian's 6.1 hangs under nested KVM, so it is emulated.
        let mut machine = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", "1536M"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"])
            .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root", "-append", "console=ttyS0 panic=-1 quiet"])
            .arg("-kernel")
            .arg(self.directory.join("boot").join(format!("vmlinuz-{}", self.release)))
            .arg("-initrd")
            .arg(&initial)
            .args(["-serial", &format!("file:{}", console.display()), "-serial", &format!("file:{}", output.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start qemu-system-x86_64; `cargo xtask setup --tests` installs it")?;
        let ended = loop {
            if let Some(status) = machine.try_wait()? {
                break Some(status);
            }
            if began.elapsed() > limit {
                machine.kill()?;
                machine.wait()?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let took = began.elapsed();
        let text = String::from_utf8_lossy(&fs::read(&output).unwrap_or_default()).replace('\r', "");
        let told = || {
            let console = fs::read(&console).unwrap_or_default();
            format!("{text}\nconsole:\n{}", String::from_utf8_lossy(&console))
        };
        let Some(status) = ended else { bail!("the machine is still running after {limit:?}:\n{}", told()) };
        ensure!(status.success(), "the machine ended with {status}: {}", told());
        let (text, code) =
            text.trim_end().rsplit_once("\nEXIT ").with_context(|| format!("the command did not end: {}", told()))?;
        let code = code.parse().with_context(|| format!("no exit code: {code}"))?;
        Ok(GuestOutput { code, text: text.to_owned(), took })
    }

    fn initial_files(&self, command: &[&str]) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for directory in ["bin", "proc", "sys", "dev", "modules", "lower", "upper", "root"] {
            archive.add(directory, DIRECTORY, b"");
        }
        let busybox =
            fs::read("/bin/busybox").context("no busybox; `cargo xtask setup` installs one that is static")?;
        archive.add("bin/busybox", EXECUTABLE, &busybox);
        let mut load = String::new();
        for path in self.modules(&ROOT_MODULES)? {
            let name = path.file_name().context("a module without name")?.to_string_lossy().into_owned();
            let module = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            archive.add(&format!("modules/{name}"), EXECUTABLE, &module);
            let _ = writeln!(load, "busybox insmod /modules/{name}");
        }
        archive.add("init", EXECUTABLE, INIT.replace("LOAD_MODULES\n", &load).as_bytes());
        archive.add("command", EXECUTABLE, self.script(command)?.as_bytes());
        Ok(archive.finish())
    }

    /// Files of these modules and of those they need, in the order to load them.
    fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let root = self.directory.join("lib/modules").join(&self.release);
        let list = fs::read_to_string(root.join("modules.dep"))
            .context("modules.dep; `cargo xtask setup --tests` makes it")?;
        let mut files: Vec<PathBuf> = Vec::new();
        for name in names {
            let file = format!("/{name}.ko");
            let found = list.lines().filter_map(|line| line.split_once(':')).find(|(path, _)| path.ends_with(&file));
            let (path, needs) = found.with_context(|| format!("there is no module {name}"))?;
            for path in needs.split_whitespace().rev().chain([path]).map(|path| root.join(path)) {
                if !files.contains(&path) {
                    files.push(path);
                }
            }
        }
        Ok(files)
    }

    /// What runs once the root is there. The variables that name our programs are passed on.
    fn script(&self, command: &[&str]) -> Result<String> {
        let kernel = quoted(&self.directory.to_string_lossy())?;
        let here = quoted(&std::env::current_dir().context("no directory")?.to_string_lossy())?;
        let mut script = format!(
            "mount --bind {kernel}/lib/modules /lib/modules\ncd {here}\nmodprobe -a {LAB_MODULES}\nip link set lo up\n\
             export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/run/tmp\n"
        );
        for (name, value) in std::env::vars().filter(|(name, _)| name.ends_with("_BIN") || name == "CARGO_MANIFEST_DIR")
        {
            let _ = writeln!(script, "export {name}={}", quoted(&value)?);
        }
        let words: Vec<String> = command.iter().map(|word| quoted(word)).collect::<Result<_>>()?;
        let _ = write!(script, "{} </dev/null\ncode=$?\necho\necho EXIT $code\n", words.join(" "));
        Ok(script)
    }
}

/// The first process: the root, with a layer of memory over it, and what a running system has besides.
const INIT: &str = "#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
LOAD_MODULES
busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose root /lower
busybox mount -t tmpfs upper /upper
busybox mkdir /upper/files /upper/work
busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /root
for tree in proc sys dev; do busybox mount --move /$tree /root/$tree; done
busybox mount -t tmpfs run /root/run
busybox mkdir /root/run/tmp
busybox mount -t cgroup2 cgroup /root/sys/fs/cgroup
busybox mount -t bpf bpf /root/sys/fs/bpf
busybox cp /command /root/run/command
exec busybox switch_root /root /bin/busybox sh -c 'sh /run/command >/dev/ttyS1 2>&1; busybox poweroff -f'
";

/// A word that the shell takes as it is.
fn quoted(word: &str) -> Result<String> {
    ensure!(!word.contains('\''), "cannot be passed on: {word}");
    Ok(format!("'{word}'"))
}

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;

/// A cpio archive in the kernel's format (initramfs buffer format, `newc`).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: usize,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.files += 1;
        // Magic, number, mode, owner, group, links, time, size, two pairs of device numbers, length of the name, no checksum.
        let fields = [self.files, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, b"");
        self.bytes
    }
}

/// A directory that goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("enforcer-vm-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_others_read() -> Result<()> {
        let mut archive = Archive::default();
        archive.add("directory", DIRECTORY, b"");
        archive.add("directory/file", EXECUTABLE, b"12345");
        let scratch = Scratch::new()?;
        let file = scratch.0.join("archive");
        fs::write(&file, archive.finish())?;
        let listed = Command::new("busybox").args(["cpio", "-itv"]).stdin(fs::File::open(&file)?).output()?;
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 2 && lines[0].starts_with("drwxr-xr-x") && lines[1].starts_with("-rwxr-xr-x"), "{text}");
        assert!(lines[1].split_whitespace().any(|word| word == "5") && lines[1].ends_with("directory/file"), "{text}");
        Ok(())
    }

    #[test]
    fn words_reach_the_command_as_they_are() -> Result<()> {
        assert_eq!(quoted("a b$c")?, "'a b$c'");
        assert!(quoted("it's").is_err());
        Ok(())
    }
}
