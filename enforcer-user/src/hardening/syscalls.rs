//! System calls no agent makes are refused to it (seccomp), in all its threads and in the plugins it executes.
//!
//! A list of what is refused, not of what is allowed: what a C library calls changes with its version, and plugins are
//! anybody's programs. What is refused fails with EPERM and is logged by the kernel; nothing is
//! killed. The list holds what changes the host (mounts, modules, clocks, other processes' memory) and what
//! has been the way into the kernel most often (io_uring, userfaultfd, perf, keys, user namespaces).

use std::{collections::BTreeMap, io};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// Refused to every agent.
const REFUSED: &[i64] = &[
    // Namespaces and the file system's shape.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_mknodat,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    // The kernel itself, and the machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_personality,
    // Other processes' memory: what the agent needs of them it gets by pidfd_getfd and /proc.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // Large parts of the kernel that the agent has no use for.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_fanotify_init,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_nfsservctl,
    libc::SYS_lookup_dcookie,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
];

/// Refused to an agent without plugins: it executes nothing.
const EXECUTING: &[i64] = &[libc::SYS_execve, libc::SYS_execveat];

/// All flags of clone(2) that make a namespace.
const NAMESPACES: &[i32] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Address families of the sockets an agent opens.
const FAMILIES: &[i32] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Refuses them from now on, in all threads; what is in force.
pub(super) fn restrict(plugins: bool) -> io::Result<String> {
    let (refused, absent) = programs(plugins)?;
    install(&absent, libc::SECCOMP_FILTER_FLAG_TSYNC)?;
    install(&refused, libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_LOG)?;
    let count = REFUSED.len() + if plugins { 0 } else { EXECUTING.len() };
    Ok(format!("{count} system calls are refused{}", if plugins { "" } else { ", executing programs among them" }))
}

/// A filter for a plugin: it opens no socket of any kind.
///
/// # Errors
/// On an architecture that is not known.
pub fn no_sockets() -> io::Result<BpfProgram> {
    compile([(libc::SYS_socket, vec![])].into(), libc::EPERM)
}

/// Puts a filter over the calling thread and all that come of it; makes system calls only.
///
/// # Errors
/// What the kernel reports: `EACCES` unless the thread has no_new_privs, `EINVAL` without seccomp.
pub fn apply(program: &BpfProgram) -> io::Result<()> {
    install(program, 0)
}

/// What is refused, and what shall seem not to exist.
fn programs(plugins: bool) -> io::Result<(BpfProgram, BpfProgram)> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|number| (*number, Vec::new())).collect();
    if !plugins {
        rules.extend(EXECUTING.iter().map(|number| (*number, Vec::new())));
    }
    let new_namespace = NAMESPACES.iter().map(|flag| {
        let flag = *flag as u32 as u64;
        rule(vec![condition(0, SeccompCmpOp::MaskedEq(flag), flag)?])
    });
    rules.insert(libc::SYS_clone, new_namespace.collect::<io::Result<_>>()?);
    let other_family = FAMILIES.iter().map(|family| condition(0, SeccompCmpOp::Ne, *family as u64));
    rules.insert(libc::SYS_socket, vec![rule(other_family.collect::<io::Result<_>>()?)?]);
    // Its flags lie in memory, where no filter can look: whoever hears that it does not exist calls clone(2).
    Ok((compile(rules, libc::EPERM)?, compile([(libc::SYS_clone3, vec![])].into(), libc::ENOSYS)?))
}

fn condition(argument: u8, operation: SeccompCmpOp, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, value).map_err(io::Error::other)
}

fn rule(conditions: Vec<SeccompCondition>) -> io::Result<SeccompRule> {
    SeccompRule::new(conditions).map_err(io::Error::other)
}

fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>, error: i32) -> io::Result<BpfProgram> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let refuse = SeccompAction::Errno(error as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture).map_err(io::Error::other)?;
    let program = BpfProgram::try_from(filter).map_err(io::Error::other)?;
    Ok(other_numbers().into_iter().chain(program).collect())
}

/// What goes by other numbers than the list's seems not to exist: calls of another architecture (32-bit programs), and the
/// second numbers that x86-64 has for the same calls (x32).
fn other_numbers() -> Vec<sock_filter> {
    // `include/uapi/linux/audit.h`: the ELF machine, 64 bits, little endian.
    const ARCHITECTURE: u32 = if cfg!(target_arch = "aarch64") { 0xc000_00b7 } else { 0xc000_003e };
    const X32: u32 = 0x4000_0000;
    let code = |code: u32| code as u16;
    // struct seccomp_data: the number, then the architecture.
    let load = |at| sock_filter { code: code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), jt: 0, jf: 0, k: at };
    let jump = |what, k, jt, jf| sock_filter { code: code(libc::BPF_JMP | what | libc::BPF_K), jt, jf, k };
    let absent = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let answer = sock_filter { code: code(libc::BPF_RET | libc::BPF_K), jt: 0, jf: 0, k: absent };
    let mut program = vec![load(4), jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0), answer.clone()];
    if cfg!(target_arch = "x86_64") {
        program.extend([load(0), jump(libc::BPF_JGE, X32, 0, 1), answer]);
    }
    program
}

fn install(program: &BpfProgram, flags: libc::c_ulong) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the program outlives the call, and its layout is the kernel's; the kernel copies it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match result {
        0 => Ok(()),
        thread if thread > 0 => Err(io::Error::other(format!("thread {thread} has another filter"))),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: a filter stays for good.
    fn filtered<T: Send + 'static>(filters: Vec<BpfProgram>, work: impl FnOnce() -> T + Send + 'static) -> T {
        let work = move || {
            nix::sys::prctl::set_no_new_privs().expect("set");
            filters.iter().for_each(|filter| apply(filter).expect("taken"));
            work()
        };
        std::thread::spawn(work).join().expect("the thread ends well")
    }

    fn call(number: i64, first: u64, second: u64) -> i32 {
        // SAFETY: none of the calls made here takes a pointer that is not null.
        let result = unsafe { libc::syscall(number, first, second, 0, 0, 0, 0) };
        if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
    }

    #[test]
    fn what_is_listed_is_refused_and_the_rest_is_not() {
        let (refused, absent) = programs(false).expect("compiled");
        let answers = filtered(vec![absent, refused], || {
            [
                call(libc::SYS_getpid, 0, 0),
                call(libc::SYS_socket, libc::AF_INET as u64, libc::SOCK_DGRAM as u64),
                call(libc::SYS_ptrace, u64::MAX, 0),
                call(libc::SYS_unshare, 0, 0),
                call(libc::SYS_execve, 0, 0),
                call(libc::SYS_clone, libc::CLONE_NEWUSER as u64, 0),
                call(libc::SYS_socket, libc::AF_PACKET as u64, libc::SOCK_RAW as u64),
                call(libc::SYS_clone3, 0, 0),
            ]
        });
        use libc::{ENOSYS, EPERM};
        assert_eq!(answers, [0, 0, EPERM, EPERM, EPERM, EPERM, EPERM, ENOSYS]);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn second_numbers_of_the_same_calls_are_no_way_around() {
        let (refused, absent) = programs(false).expect("compiled");
        assert_eq!(filtered(vec![absent, refused], || call(libc::SYS_ptrace | 0x4000_0000, 0, 0)), libc::ENOSYS);
    }

    #[test]
    fn an_agent_with_plugins_may_execute_and_a_plugin_may_open_no_socket() {
        let (refused, absent) = programs(true).expect("compiled");
        let (thread, program) = filtered(vec![absent, refused], || {
            let status = std::process::Command::new("/bin/true").status();
            (std::thread::spawn(|| 7).join().expect("a thread"), status.is_ok_and(|status| status.success()))
        });
        assert_eq!((thread, program), (7, true));
        let sockets = no_sockets().expect("compiled");
        let refused =
            filtered(vec![sockets], || call(libc::SYS_socket, libc::AF_UNIX as u64, libc::SOCK_STREAM as u64));
        assert_eq!(refused, libc::EPERM);
    }
}
