/*
 * The handshake against an attacker who is the network: docs/model.md says what is abstracted and why.
 *
 * Whatever an enforcer sends becomes known to the attacker. An enforcer takes a packet if the attacker can make it: if the MAC
 * was seen before, or the attacker holds its key. That is all that loss, duplication, reordering, replay, alteration and forgery
 * can do. Every step names the function that it stands for.
 */

/* ---- Bounds; a run sets them with -D ---- */

#ifndef RUNS_A
#define RUNS_A 2	/* connections that PUs of A open, at most 2 */
#endif
#ifndef RUNS_B
#define RUNS_B 0	/* connections that PUs of B open, at most 2 */
#endif
#ifndef SYNS
#define SYNS 2		/* SYNs a host lets pass, at most 3 */
#endif
#ifndef ROTATES_A
#define ROTATES_A 0	/* 1: A replaces its prekey once */
#endif
#ifndef ROTATES_B
#define ROTATES_B 0
#endif
#ifndef FORGETS_B
#define FORGETS_B 0	/* 1: B's agent loses all sessions once */
#endif
#ifndef INSIDER
#define INSIDER 0	/* 1: the attacker has an enforcer of its own, E, with a certificate everybody trusts */
#endif
#ifndef WARM
#define WARM 0		/* 1: the hosts have met before, in a session of their first prekeys */
#endif
#ifndef CUTS
#define CUTS 0		/* 1: policy may cut connections */
#endif

#define TERMS 16	/* MACs the attacker can remember; asserted to be enough */

/* ---- Mutations: each -D takes one check out of the enforcers ---- */

#ifdef NO_RESUME_MAC
#define RESUME_MAC(t) true
#else
#define RESUME_MAC(t) knows(t)
#endif
#ifdef NO_RESUME_REPLY_MAC
#define RESUME_REPLY_MAC(t) true
#else
#define RESUME_REPLY_MAC(t) knows(t)
#endif
#ifdef NO_HELLO_REPLY_MAC
#define HELLO_REPLY_MAC(t) true
#else
#define HELLO_REPLY_MAC(t) knows(t)
#endif
#ifdef NO_CONFIRM_MAC
#define CONFIRM_MAC(t) true
#else
#define CONFIRM_MAC(t) knows(t)
#endif
#ifdef NO_DENY_MAC
#define DENY_MAC(t) true
#else
#define DENY_MAC(t) knows(t)
#endif
#ifdef NO_PEER_ISN
#define bound_isn(i) 0
#else
#define bound_isn(i) (i)
#endif
#ifdef NO_PEER_HANDLE
#define bound_handle(p) 0
#else
#define bound_handle(p) (p)
#endif

/* -DWITNESS_...: an assertion that what ought to be possible is not, which must fail; else the model proves nothing. */

/* ---- Names ---- */

#define A 0
#define B 1
#define other(h) (1 - (h))

/* A session as a host names it: who the peer is, and the epochs of both prekeys. */
#define HONEST 0	/* the other host */
#define INTRUDER 1	/* E, who shows a prekey of its own */
#define CLAIMANT 2	/* E, who shows the other host's prekey as its own */
#define FAKE 3		/* the other host, by a credential that it never signed */
#define session_of(kind, own, peer) (1 + (kind) * 4 + (own) * 2 + (peer))
#define kind(s)		((((s) - 1) % 16) / 4)
#define own_epoch(s)	((((s) - 1) / 2) % 2)
#define peer_epoch(s)	(((s) - 1) % 2)
#define believes_honest(s) (kind(s) == HONEST || kind(s) == FAKE)
/* The index a host chose is the name itself; a host that forgot it chooses another. */
#define plain(s)	((((s) - 1) % 16) + 1)
#define GENERATION 16
#define INDEX_MAX 32

/* HKDF over the agreement of both prekeys, both ids and both prekeys: session_keys::derive. */
#define key_honest(h, s) ((h) == A -> own_epoch(s) * 2 + peer_epoch(s) : peer_epoch(s) * 2 + own_epoch(s))
#ifdef NO_IDS_IN_KEY
#define key_claimed(h, s) key_honest(h, s)
#else
#define key_claimed(h, s) (4 + (h) * 4 + own_epoch(s) * 2 + peer_epoch(s))
#endif
#define KEY_OF_E 12
#define key_of(h, s) (kind(s) == HONEST -> key_honest(h, s) : (kind(s) == CLAIMANT -> key_claimed(h, s) : KEY_OF_E))

#define RESUME 1
#define RESUME_REPLY 2
#define HELLO_REPLY 3
#define CONFIRM 4
#define DENY 5

/* A MAC, as all that it is made of: key, direction, type, handle, index, ISNs, handle of the peer. */
#define mac(key, from, type, handle, index, isn, peer_isn, peer_handle) \
	(((((((((key) * 2 + (from)) * 8 + (type)) * 4 + (handle)) * 64 + (index)) * 4 + (isn)) * 4 + bound_isn(peer_isn)) * 4) \
	+ bound_handle(peer_handle) + 1)

/* ---- The attacker ---- */

int seen[TERMS];	/* sorted, because it does not matter when a MAC was seen */
byte seen_n;

#define is_seen(t) (seen[0] == t || seen[1] == t || seen[2] == t || seen[3] == t || seen[4] == t || seen[5] == t || \
	seen[6] == t || seen[7] == t || seen[8] == t || seen[9] == t || seen[10] == t || seen[11] == t || seen[12] == t || \
	seen[13] == t || seen[14] == t || seen[15] == t)
/* Whether a packet with this MAC of session `s` (chosen before) can be made. */
#define knows(t) (kind(sid) == INTRUDER || kind(sid) == FAKE || is_seen(t))

/* ---- The hosts ---- */

/* Flow::state */
#define NONE 0
#define SYN_SENT 1
#define CONFIRMING 2
#define SYN_RECEIVED 3
#define ESTABLISHED 4
#define CUT 5

/* A flow at the client; its number tells its ISN, which no other connection has. */
typedef Client {
	byte state;
	byte pu;		/* local handle */
	byte session;
	byte peer_isn;
	byte peer_handle;
	bit retried;
	bit proven;		/* the server was truly heard: for the properties alone, as all that follows */
	bit taken;		/* a server has taken this connection for its own */
	bit cut
}

/* A flow at the server; its slot is the tuple and names the PU that listens. */
typedef Server {
	byte state;
	byte isn;
	byte session;
	byte peer_isn;
	byte peer_handle;
	bit retried;
	bit first_contact;	/* PATH_HELLO */
	bit shown;		/* FLAG_CREDENTIAL_SENT */
	bit proven
}

/* What a server answered, by the ISN of its answer: for the properties alone. */
typedef Answer {
	byte session;
	byte peer_isn;
	byte peer_handle;
	byte pu;
	bit taken;
	bit cut
}

typedef Host {
	byte generation;	/* 0, or GENERATION once all was forgotten */
	int open;		/* SESSIONS */
	int peer_pus_1;		/* PEER_PUS: sessions in which the peer's handle 1 was met */
	int peer_pus_2;
	int known_1;		/* KNOWN_TO_PEER: sessions in which the peer met the own handle 1 */
	int known_2;
	byte peer_index[5];	/* Session::peer_index of honest sessions */
	byte age;		/* 0: first prekey, 1: a second beside it, 2: the first has ended, 3: and is forgotten */
	byte syns;
	byte opened
}

Host host[2];
Client client[4];	/* 2 * host + connection */
Server server[4];	/* 2 * host + slot */
Answer answer[8];	/* 4 * host + ISN */

#define current(h) (host[h].age > 0)
#define is_live(h, e) ((e) == 0 && host[h].age < 3 || (e) == 1 && host[h].age > 0)
#define is_shown(h, e) ((e) == 0 && host[h].age < 2 || (e) == 1 && host[h].age > 0)
/* Session::until: nothing new begins once the older prekey has ended. */
#define lasts(h, s) (is_shown(h, own_epoch(s)) && (!(kind(s) == HONEST || kind(s) == CLAIMANT) || is_shown(other(h), peer_epoch(s))))
#define bit_of(s) (1 << plain(s))
#define is_open(h, s) ((s) != 0 && (host[h].open & bit_of(s)) != 0 && ((s) > GENERATION) == (host[h].generation != 0))
#define has_met(h, s, p) ((((p) == 1 -> host[h].peer_pus_1 : host[h].peer_pus_2) & bit_of(s)) != 0)
#define is_known(h, s, p) ((((p) == 1 -> host[h].known_1 : host[h].known_2) & bit_of(s)) != 0)
#define peer_index_of(h, s) (kind(s) == HONEST -> host[h].peer_index[plain(s)] : 1)

/* Choices within one step, and results of the properties; all 0 between steps. */
byte me;
byte nr;
byte ref;
byte sid;
byte epoch;
byte whose;
byte pu_nr;
byte isn_nr;
byte peer_idx;
byte own;
byte holds;
int tag;
byte place;
byte responder_agrees;
byte responder_is_injective;
byte initiator_agrees;
byte initiator_is_injective;
byte no_early_data_at_the_server;
byte no_early_data_at_the_client;
byte cut_is_genuine;
byte syn_is_genuine;
byte no_first_contact_succeeds;
byte no_further_contact_succeeds;
byte no_contact_in_the_second_epoch_succeeds;
byte no_contact_with_the_intruder_succeeds;

/* A packet leaves with the MAC `tag`. */
inline send() {
	if
	:: is_seen(tag)
	:: else ->
		assert(seen_n < TERMS);
		place = seen_n;
		do
		:: place > 0 && seen[place - 1] > tag -> seen[place] = seen[place - 1]; place--
		:: else -> break
		od;
		seen[place] = tag;
		seen_n++
	fi
}

inline meet_pu(s_, p_) {
	if
	:: (p_) == 1 -> host[me].peer_pus_1 = host[me].peer_pus_1 | bit_of(s_)
	:: else -> host[me].peer_pus_2 = host[me].peer_pus_2 | bit_of(s_)
	fi
}

inline note_known(s_, p_) {
	if
	:: (p_) == 1 -> host[me].known_1 = host[me].known_1 | bit_of(s_)
	:: else -> host[me].known_2 = host[me].known_2 | bit_of(s_)
	fi
}

inline forget_known(s_, p_) {
	if
	:: (s_) == 0
	:: (s_) != 0 && (p_) == 1 -> host[me].known_1 = host[me].known_1 & ~bit_of(s_)
	:: (s_) != 0 && (p_) != 1 -> host[me].known_2 = host[me].known_2 & ~bit_of(s_)
	fi
}

inline note_index(s_, x_) {
	if
	:: kind(s_) == HONEST -> host[me].peer_index[plain(s_)] = x_
	:: else
	fi
}

/* Any host; any of its PUs or the peer's; any ISN the peer has used, or 0 for one that it has not. */
inline any_host() { if :: me = A :: me = B fi }
inline any_handle() { if :: pu_nr = 1 :: pu_nr = 2 fi }
inline any_isn(last) {
	if
	:: isn_nr = 0
	:: last > 0 -> isn_nr = 1
	:: last > 1 -> isn_nr = 2
	:: last > 2 -> isn_nr = 3
	fi
}
inline any_epoch(v) { if :: v = 0 :: (ROTATES_A || ROTATES_B) -> v = 1 :: (ROTATES_A || ROTATES_B) -> v = 0 fi }

/* A credential that verifies: who (`k`), which PU (`p`), which prekey (`e`). All that were ever signed are known. */
inline any_credential() {
	if
	:: whose = HONEST; any_handle(); any_epoch(epoch)
	:: INSIDER -> whose = INTRUDER; pu_nr = 1; epoch = 0
	:: INSIDER -> whose = CLAIMANT; pu_nr = 1; any_epoch(epoch)
#ifdef NO_SIGNATURE
	:: whose = FAKE; any_handle(); epoch = 0
#endif
	fi
}
#define credential_lasts() (!(whose == HONEST || whose == CLAIMANT) || is_shown(other(me), epoch))

/* Any session of `h`. */
inline any_session() {
	if
	:: whose = HONEST; any_epoch(own); any_epoch(epoch)
	:: INSIDER -> whose = INTRUDER; any_epoch(own); epoch = 0
	:: INSIDER -> whose = CLAIMANT; any_epoch(own); any_epoch(epoch)
#ifdef NO_SIGNATURE
	:: whose = FAKE; any_epoch(own); epoch = 0
#endif
	fi;
	sid = session_of(whose, own, epoch) + host[me].generation
}

/* Any index that the peer may have chosen for session `s`. */
inline any_index() {
	peer_idx = session_of(kind(sid), peer_epoch(sid), own_epoch(sid));
	if
	:: kind(sid) == CLAIMANT -> peer_idx = session_of(HONEST, peer_epoch(sid), own_epoch(sid))
	:: kind(sid) != CLAIMANT
	:: INSIDER && kind(sid) == HONEST -> peer_idx = session_of(CLAIMANT, peer_epoch(sid), own_epoch(sid))
	fi;
	if
	:: FORGETS_B -> peer_idx = peer_idx + GENERATION
	:: true
	fi
}

#define C client[2 * me + nr]
#define isn_of_client (nr + 1)
#define S server[2 * me + nr]
#define pu_of_server (nr + 1)

/* ---- Client ---- */

/* outbound_open::open: a new connection, or its SYN again. Which session an address leads to is the attacker's choice. */
inline client_opens() {
	if
	:: host[me].opened < (me == A -> RUNS_A : RUNS_B) -> nr = host[me].opened; any_handle(); ref = 1
	:: host[me].opened > 0 -> nr = 0; pu_nr = C.pu; ref = 0
	:: host[me].opened > 1 -> nr = 1; pu_nr = C.pu; ref = 0
	:: else -> nr = 0; pu_nr = 0; ref = 0
	fi;
	if
	:: sid = 0
	:: any_session()
	fi;
	if
	:: pu_nr == 0 || ref == 0 && C.state != SYN_SENT && C.state != CONFIRMING
	:: else ->
		if
		/* known_session */
		:: sid != 0 && !(is_open(me, sid) && lasts(me, sid) && peer_index_of(me, sid) != 0 && is_known(me, sid, pu_nr))
		:: else -> d_step {
			if
			:: ref == 1 -> host[me].opened++; C.state = SYN_SENT; C.pu = pu_nr
			:: else
			fi;
			if
			:: C.state == SYN_SENT -> C.session = sid
			:: else
			fi;
			if
			:: sid != 0 -> tag = mac(key_of(me, sid), me, RESUME, pu_nr, peer_index_of(me, sid), isn_of_client, 0, 0); send()
			:: else
			fi
		}
		fi
	fi
}

/* inbound_answer::retry_asked: nobody vouches for a RETRY. */
inline retry_at_client() {
	if
	:: C.state == SYN_SENT && !C.retried -> d_step {
		forget_known(C.session, C.pu);
		C.retried = 1;
		C.session = 0
	}
	:: else
	fi
}

/* The client believes the server of session `s`, whose PU is `p` and ISN `i`; the truth is in answer[]. */
inline believe_server() {
	holds = C.state == CONFIRMING && C.peer_isn == isn_nr && C.peer_handle == pu_nr;
	C.proven = knows(tag);
	C.state = CONFIRMING;
	C.session = sid;
	C.peer_isn = isn_nr;
	C.peer_handle = pu_nr;
	if
	:: believes_honest(sid) && !holds ->
		ref = 4 * other(me) + isn_nr;
		initiator_agrees = isn_nr != 0 && answer[ref].peer_isn == isn_of_client && answer[ref].peer_handle == C.pu &&
			answer[ref].pu == pu_nr && answer[ref].session != 0 && kind(answer[ref].session) == HONEST &&
			key_of(other(me), answer[ref].session) == key_of(me, sid);
		assert(initiator_agrees);
		initiator_is_injective = !answer[ref].taken;
		assert(initiator_is_injective);
		answer[ref].taken = 1
	:: else
	fi;
	/* The ACK, and data until the server is heard. */
	tag = mac(key_of(me, sid), me, CONFIRM, C.pu, sid, isn_of_client, isn_nr, pu_nr); send()
}

/* inbound_answer::resumed, in the kernel. */
inline take_resume_reply() {
	any_handle();
	any_isn(host[other(me)].syns);
	sid = C.session;
	if
	:: is_open(me, sid) && (C.state == SYN_SENT || C.state == CONFIRMING) ->
		tag = mac(key_of(me, sid), other(me), RESUME_REPLY, pu_nr, sid, isn_nr, isn_of_client, C.pu);
		if
#ifndef NO_SAME_ANSWER
		:: C.state == CONFIRMING && C.peer_isn != isn_nr
#endif
		:: !(RESUME_REPLY_MAC(tag) && has_met(me, sid, pu_nr))
		:: else -> d_step { believe_server() }
		fi
	:: else
	fi
}

/* contact::hello_reply: initiator::verify, then Shown::authenticate or authenticate_in, then the flow. */
inline take_hello_reply() {
	any_isn(host[other(me)].syns);
	any_credential();
	if
	:: (C.state == SYN_SENT || C.state == CONFIRMING) && credential_lasts() ->
		if
		:: is_open(me, C.session) ->
			sid = C.session;
			peer_idx = peer_index_of(me, sid);
			ref = believes_honest(sid) == (whose == HONEST || whose == FAKE)
		:: else ->
			any_epoch(own);
			sid = session_of(whose, own, epoch) + host[me].generation;
			any_index();
			ref = is_live(me, own)
		fi;
		tag = mac(key_of(me, sid), other(me), HELLO_REPLY, pu_nr, peer_idx, isn_nr, isn_of_client, C.pu);
		if
		:: !(ref && HELLO_REPLY_MAC(tag))
		:: else -> d_step {
			host[me].open = host[me].open | bit_of(sid);
			note_index(sid, peer_idx);
			meet_pu(sid, pu_nr);
			note_known(sid, C.pu);
			if
#ifndef NO_SECOND_LOOK
			:: C.state != SYN_SENT
#endif
			:: else -> believe_server()
			fi
		}
		fi
	:: else
	fi
}

/* inbound::handshake: the first segment without SYN ends CONFIRM; whoever sent it. */
inline heard_at_client() {
	if
	:: C.state == CONFIRMING -> C.state = ESTABLISHED
	:: else
	fi
}

/* outbound::handshake and inbound::handshake: what the PU sends and gets beside SYN and SYN-ACK. */
inline data_at_client() {
	if
#ifdef NO_GATE_AT_CLIENT
	:: C.state == SYN_SENT || C.state == CONFIRMING || C.state == ESTABLISHED ->
#else
	:: C.state == CONFIRMING || C.state == ESTABLISHED ->
#endif
		no_early_data_at_the_client = C.proven;
		assert(no_early_data_at_the_client)
	:: else
	fi
}

/* ---- Server ---- */

inline show_credential() {
	S.shown = 1;
	S.first_contact = 1;
	tag = mac(key_of(me, sid), me, HELLO_REPLY, pu_of_server, sid, S.isn, S.peer_isn, S.peer_handle); send()
}

/* outbound::write_answer. */
inline write_answer() {
	if
	:: is_known(me, sid, pu_of_server) && !S.first_contact ->
		tag = mac(key_of(me, sid), me, RESUME_REPLY, pu_of_server, peer_index_of(me, sid), S.isn, S.peer_isn, S.peer_handle); send()
	:: else -> show_credential()
	fi
}

/* A SYN passes to the listener, whose stack answers it. */
inline begin_server(path_hello) {
	host[me].syns++;
	S.state = SYN_RECEIVED;
	S.isn = host[me].syns;
	S.session = sid;
	S.peer_isn = isn_nr;
	S.peer_handle = pu_nr;
	S.retried = 0;
	S.shown = 0;
	S.proven = 0;
	S.first_contact = path_hello;
	ref = 4 * me + S.isn;
	answer[ref].session = sid;
	answer[ref].peer_isn = isn_nr;
	answer[ref].peer_handle = pu_nr;
	answer[ref].pu = pu_of_server;
	write_answer()
}

#define takes_syn (host[me].syns < SYNS && (S.state == NONE || S.state == SYN_RECEIVED))

/* contact::hello: responder::authenticate, Hello::accept, then the flow. A HELLO proves nothing. */
inline take_hello() {
	if
	:: takes_syn ->
		any_isn(host[other(me)].opened);
		any_credential();
		own = current(me);
		sid = session_of(whose, own, epoch) + host[me].generation;
		if
		:: !(credential_lasts() && lasts(me, sid))
		:: S.state == SYN_RECEIVED && S.peer_isn == isn_nr
		:: else -> d_step {
			if
			:: is_open(me, sid)
			:: else -> host[me].open = host[me].open | bit_of(sid); note_index(sid, 0)
			fi;
			meet_pu(sid, pu_nr);
			begin_server(1)
		}
		fi
	:: else
	fi
}

/* inbound_open::resumed, in the kernel; hook_xdp refuses nothing else. Where it asks to start over nothing changes here. */
inline take_resume() {
	if
	:: takes_syn ->
		any_isn(host[other(me)].opened);
		any_handle();
		any_session();
		tag = mac(key_of(me, sid), other(me), RESUME, pu_nr, sid, isn_nr, 0, 0);
		if
		:: !(is_open(me, sid) && lasts(me, sid) && has_met(me, sid, pu_nr) && RESUME_MAC(tag))
		:: S.state == SYN_RECEIVED && S.peer_isn == isn_nr
		:: else -> d_step {
			ref = 2 * other(me) + isn_nr - 1;
			syn_is_genuine = !believes_honest(sid) || isn_nr != 0;
			if
			:: believes_honest(sid) && isn_nr != 0 -> syn_is_genuine = client[ref].state != NONE && client[ref].pu == pu_nr
			:: else
			fi;
			assert(syn_is_genuine);
			begin_server(0)
		}
		fi
	:: else
	fi
}

/* The SYN-ACK again, or inbound_answer::credential_asked. */
inline answer_again() {
	sid = S.session;
	if
	:: S.state == SYN_RECEIVED && is_open(me, sid) ->
		if
		:: true -> d_step { write_answer() }
		:: !S.retried -> d_step { S.retried = 1; show_credential() }
		:: true
		fi
	:: else
	fi
}

/* The server takes a connection for the client's; the truth is in client[]. */
inline believe_client() {
	ref = 2 * other(me) + S.peer_isn - 1;
	responder_agrees = S.peer_isn >= 1 && S.peer_isn <= 2;
	if
	:: responder_agrees ->
		responder_agrees = client[ref].session != 0 && kind(client[ref].session) == HONEST && client[ref].pu == S.peer_handle &&
			client[ref].peer_handle == pu_of_server && client[ref].peer_isn == S.isn &&
			key_of(other(me), client[ref].session) == key_of(me, sid);
		responder_is_injective = !client[ref].taken;
		assert(responder_is_injective);
		client[ref].taken = 1
	:: else
	fi;
	assert(responder_agrees)
}

/* inbound::confirmed, in the kernel. */
inline take_confirm() {
	sid = S.session;
	if
	:: S.state == SYN_RECEIVED && is_open(me, sid) ->
		any_index();
		tag = mac(key_of(me, sid), other(me), CONFIRM, S.peer_handle, peer_idx, S.peer_isn, S.isn, pu_of_server);
		if
		:: !CONFIRM_MAC(tag)
		:: else -> d_step {
			S.proven = knows(tag);
			S.state = ESTABLISHED;
			note_index(sid, peer_idx);
			if
			:: S.shown -> note_known(sid, pu_of_server)
			:: else
			fi;
			if
			:: believes_honest(sid) -> believe_client()
			:: else
			fi;
#ifdef WITNESS_HELLO
			no_first_contact_succeeds = !(kind(sid) == HONEST && S.shown);
			assert(no_first_contact_succeeds)
#endif
#ifdef WITNESS_RESUME
			no_further_contact_succeeds = !(kind(sid) == HONEST && !S.shown);
			assert(no_further_contact_succeeds)
#endif
#ifdef WITNESS_ROTATION
			no_contact_in_the_second_epoch_succeeds = !(kind(sid) == HONEST && own_epoch(sid) + peer_epoch(sid) > 0);
			assert(no_contact_in_the_second_epoch_succeeds)
#endif
#ifdef WITNESS_INSIDER
			no_contact_with_the_intruder_succeeds = kind(sid) != INTRUDER;
			assert(no_contact_with_the_intruder_succeeds)
#endif
		}
		fi
	:: else
	fi
}

/* outbound::handshake and inbound::handshake: what the PU sends and gets beside SYN and SYN-ACK. */
inline data_at_server() {
	if
#ifdef NO_GATE_AT_SERVER
	:: S.state == SYN_RECEIVED || S.state == ESTABLISHED ->
#else
	:: S.state == ESTABLISHED ->
#endif
		no_early_data_at_the_server = S.proven;
		assert(no_early_data_at_the_server)
	:: else
	fi
}

/* ---- Policy ---- */

/* judge::rejudge cuts a live flow; its peer is told with the next segment (inbound_answer::cut_option). */
inline cut_client() {
	if
	:: C.state == ESTABLISHED || C.state == CONFIRMING -> d_step {
		sid = C.session;
		C.state = CUT;
		C.cut = 1;
		if
		:: is_open(me, sid) -> tag = mac(key_of(me, sid), me, DENY, 0, peer_index_of(me, sid), isn_of_client, C.peer_isn, C.peer_handle); send()
		:: else
		fi
	}
	:: else
	fi
}

inline cut_server() {
	if
	:: S.state == ESTABLISHED -> d_step {
		sid = S.session;
		S.state = CUT;
		ref = 4 * me + S.isn;
		answer[ref].cut = 1;
		if
		:: is_open(me, sid) -> tag = mac(key_of(me, sid), me, DENY, 0, peer_index_of(me, sid), S.isn, S.peer_isn, S.peer_handle); send()
		:: else
		fi
	}
	:: else
	fi
}

/* inbound_answer::cut_by_peer. */
inline denied_at_client() {
	sid = C.session;
	if
	:: (C.state == ESTABLISHED || C.state == CONFIRMING) && is_open(me, sid) ->
		tag = mac(key_of(me, sid), other(me), DENY, 0, sid, C.peer_isn, isn_of_client, C.pu);
		if
		:: !DENY_MAC(tag)
		:: else -> d_step {
			ref = 4 * other(me) + C.peer_isn;
			cut_is_genuine = !believes_honest(sid) || answer[ref].cut;
			assert(cut_is_genuine);
			C.state = CUT
		}
		fi
	:: else
	fi
}

inline denied_at_server() {
	sid = S.session;
	if
	:: S.state == ESTABLISHED && is_open(me, sid) ->
		tag = mac(key_of(me, sid), other(me), DENY, 0, sid, S.peer_isn, S.isn, pu_of_server);
		if
		:: !DENY_MAC(tag)
		:: else -> d_step {
			ref = 2 * other(me) + S.peer_isn - 1;
			cut_is_genuine = !believes_honest(sid) || client[ref].cut;
			assert(cut_is_genuine);
			S.state = CUT
		}
		fi
	:: else
	fi
}

/* ---- Time ---- */

/* Prekeys::rotate, the end of the old one, and Prekeys::rotate_if_due and Sessions::expire that forget it. */
inline grow_older() {
	if
	:: (me == A && ROTATES_A || me == B && ROTATES_B) && host[me].age < 3 -> d_step {
		host[me].age++;
		if
		:: host[me].age == 3 ->
			/* Sessions made of the first prekey have even names, two by two: own epoch 0. */
			host[me].open = host[me].open & ~(1 << 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 14);
			host[me].peer_pus_1 = host[me].peer_pus_1 & host[me].open;
			host[me].peer_pus_2 = host[me].peer_pus_2 & host[me].open;
			host[me].known_1 = host[me].known_1 & host[me].open;
			host[me].known_2 = host[me].known_2 & host[me].open;
			host[me].peer_index[1] = 0;
			host[me].peer_index[2] = 0
		:: else
		fi
	}
	:: else
	fi
}

inline forget_all() {
	if
	:: me == B && FORGETS_B && host[me].generation == 0 -> d_step {
		host[me].generation = GENERATION;
		host[me].open = 0;
		host[me].peer_pus_1 = 0;
		host[me].peer_pus_2 = 0;
		host[me].known_1 = 0;
		host[me].known_2 = 0;
		host[me].peer_index[1] = 0;
		host[me].peer_index[2] = 0;
		host[me].peer_index[3] = 0;
		host[me].peer_index[4] = 0
	}
	:: else
	fi
}

inline end_step() {
	d_step {
		me = 0;
		nr = 0;
		ref = 0;
		sid = 0;
		epoch = 0;
		whose = 0;
		pu_nr = 0;
		isn_nr = 0;
		peer_idx = 0;
		own = 0;
		holds = 0;
		tag = 0;
		place = 0;
		responder_agrees = 0;
		responder_is_injective = 0;
		initiator_agrees = 0;
		initiator_is_injective = 0;
		no_early_data_at_the_server = 0;
		no_early_data_at_the_client = 0;
		cut_is_genuine = 0;
		syn_is_genuine = 0;
		no_first_contact_succeeds = 0;
		no_further_contact_succeeds = 0;
		no_contact_in_the_second_epoch_succeeds = 0;
		no_contact_with_the_intruder_succeeds = 0
	}
}

#define CLIENT_ROLE (me == A -> RUNS_A > 0 : RUNS_B > 0)
#define SERVER_ROLE (me == A -> RUNS_B > 0 : RUNS_A > 0)

active proctype network() {
	d_step {
		/* Every PU has been met by now. */
		host[A].open = WARM * bit_of(session_of(HONEST, 0, 0));
		host[A].peer_pus_1 = host[A].open;
		host[A].peer_pus_2 = host[A].open;
		host[A].known_1 = host[A].open;
		host[A].known_2 = host[A].open;
		host[A].peer_index[session_of(HONEST, 0, 0)] = WARM * session_of(HONEST, 0, 0);
		host[B].open = host[A].open;
		host[B].peer_pus_1 = host[A].open;
		host[B].peer_pus_2 = host[A].open;
		host[B].known_1 = host[A].open;
		host[B].known_2 = host[A].open;
		host[B].peer_index[session_of(HONEST, 0, 0)] = host[A].peer_index[session_of(HONEST, 0, 0)]
	}
	do
	:: atomic {
		any_host();
		if
		:: CLIENT_ROLE ->
			if
			:: true -> client_opens()
			:: host[me].opened > 0 ->
				if
				:: nr = 0
				:: host[me].opened > 1 -> nr = 1
				fi;
				if
				:: C.state == SYN_SENT && !C.retried -> retry_at_client()
				:: C.session != 0 && (C.state == SYN_SENT || C.state == CONFIRMING) -> take_resume_reply()
				:: C.state == SYN_SENT || C.state == CONFIRMING -> take_hello_reply()
				:: C.state == CONFIRMING -> heard_at_client()
				:: true -> data_at_client()
				:: CUTS -> cut_client()
				:: CUTS -> denied_at_client()
				fi
			:: else
			fi
		:: SERVER_ROLE ->
			if
			:: nr = 0
			:: nr = 1
			fi;
			if
			:: takes_syn -> take_hello()
			:: takes_syn -> take_resume()
			:: S.state == SYN_RECEIVED -> answer_again()
			:: S.state == SYN_RECEIVED -> take_confirm()
			:: true -> data_at_server()
			:: CUTS && S.state == ESTABLISHED -> cut_server()
			:: CUTS -> denied_at_server()
			fi
		:: true -> grow_older()
		:: true -> forget_all()
		fi;
		end_step()
	}
	od
}
