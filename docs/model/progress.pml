/*
 * One connection over a network that means no harm: it loses, doubles and reorders, each a bounded number of times, and else
 * delivers. Both ends may remember anything at first: docs/model.md. Whatever happened, both ends are live in the end.
 */

#ifndef LOSSES
#define LOSSES 2
#endif
#ifndef DOUBLES
#define DOUBLES 1
#endif
#ifndef OVERTAKEN
#define OVERTAKEN 2
#endif
#ifndef EARLY
#define EARLY 1		/* times a stack sends again although nothing was lost */
#endif
#ifndef LOAD
#define LOAD 0		/* 1: B may ask any HELLO without a cookie for one, as often as it likes */
#endif
/* After each loss one timer runs out; one more for what an early one may have overtaken. */
#define TIMERS (LOSSES + EARLY + 2)

mtype = { HELLO, HELLO_REPLY, RESUME, RESUME_REPLY, CONFIRM, RETRY, CHALLENGE, DATA };
mtype = { SYN_SENT, CONFIRMING, NONE, SYN_RECEIVED, ESTABLISHED };

/* Mutations: -DNO_RETRY, -DNO_CHALLENGE (A does not heed it), -DNO_SECOND_CONFIRM (CONFIRM is sent once). */

/* Packets on their way. `stale`: the session index is one that B no longer has; of a HELLO: it shows a cookie. */
chan to_b = [6] of { mtype, bit };
chan to_a = [6] of { mtype, bit };
#define has_room (len(to_a) < 5 && len(to_b) < 5)

byte losses = LOSSES;
byte doubles = DOUBLES;
byte overtaken = OVERTAKEN;
byte early = EARLY;
byte timers = TIMERS;

/* What A remembers: a session with B (of an index that B may have forgotten), that B has met its PU, that it has met B's. */
bit a_session;
bit a_stale;
bit a_known;
bit a_met;
mtype client = SYN_SENT;
bit a_resumed;
bit a_retried;
bit a_challenged;

bit client_is_live;
bit server_is_live;

bit b_session;
bit b_met;
bit b_known;
mtype server = NONE;
bit b_first_contact;
bit b_shown;
bit b_retried;

/* outbound_open: RESUME where B is known to have met the PU, else HELLO. */
inline send_syn() {
	a_challenged = 0;
	if
	:: a_session && a_known -> a_resumed = (client == SYN_SENT -> 1 : a_resumed); to_b ! RESUME(a_stale)
	:: else -> a_resumed = (client == SYN_SENT -> 0 : a_resumed); to_b ! HELLO(0)
	fi
}

/* outbound::write_answer. */
inline send_answer() {
	if
	:: b_known && !b_first_contact -> to_a ! RESUME_REPLY(0)
	:: else -> b_shown = 1; b_first_contact = 1; to_a ! HELLO_REPLY(0)
	fi
}

/* outbound_open once, then whatever comes. */
active proctype a() {
	mtype packet;
	bit stale;
	atomic {
		if
		:: a_session = 1; if :: a_stale = 1 :: true fi; if :: a_known = 1 :: true fi; if :: a_met = 1 :: true fi
		:: true
		fi;
		if
		:: b_session = 1; if :: b_met = 1 :: true fi; if :: b_known = 1 :: true fi
		:: true
		fi;
		/* An index that B has is no stale one; nobody takes another for met who is not known to it. */
		if
		:: !b_session && a_session -> a_stale = 1
		:: else
		fi;
		if
		:: a_stale -> b_met = 0; b_known = 0
		:: else
		fi;
		send_syn()
	}
end:	do
	:: atomic { to_a ? packet, stale ->
		if
		/* inbound_answer::retry_asked */
#ifndef NO_RETRY
		:: packet == RETRY && client == SYN_SENT && !a_retried ->
			a_known = 0; a_retried = 1; a_resumed = 0; to_b ! HELLO(0)
#endif
		/* inbound_answer::challenged */
#ifndef NO_CHALLENGE
		:: packet == CHALLENGE && client == SYN_SENT && !a_resumed && !a_challenged ->
			a_challenged = 1; to_b ! HELLO(1)
#endif
		/* inbound_answer::resumed; in CONFIRMING it is passed to the stack, which acknowledges again */
		:: packet == RESUME_REPLY && a_resumed && (client == SYN_SENT || client == CONFIRMING) ->
			if
			:: a_met -> client = CONFIRMING; to_b ! CONFIRM(0)
			/* inbound_answer::ask_server */
			:: else -> to_b ! RETRY(0)
			fi
		/* contact::hello_reply */
		:: packet == HELLO_REPLY && (client == SYN_SENT || client == CONFIRMING) ->
			a_session = 1; a_stale = 0; a_met = 1; a_known = 1;
			client = CONFIRMING; to_b ! CONFIRM(0)
		/* The stack of a settled connection answers a SYN-ACK with an acknowledgement. */
		:: packet == DATA && client == CONFIRMING -> client = ESTABLISHED
		:: else
		fi;
		packet = 0; stale = 0
	}
	/* A timer: the SYN again, or data with CONFIRM. */
	:: atomic { early > 0 && has_room && client == SYN_SENT -> early--; send_syn() }
	:: atomic { timeout && client != ESTABLISHED && timers > 0 -> timers--;
		if
		:: client == SYN_SENT -> send_syn()
#ifdef NO_SECOND_CONFIRM
		:: client == CONFIRMING
#else
		:: client == CONFIRMING -> to_b ! CONFIRM(0)
#endif
		fi
	}
	:: atomic { timeout && client != ESTABLISHED && timers == 0 -> assert(client_is_live) }
	od
}

active proctype b() {
	mtype packet;
	bit stale;
end:	do
	:: atomic { to_b ? packet, stale ->
		if
		/* gate::first_contact */
		:: LOAD && packet == HELLO && !stale && server != ESTABLISHED -> to_a ! CHALLENGE(0)
		/* contact::hello */
		:: packet == HELLO && server != ESTABLISHED ->
			b_session = 1; b_met = 1;
			if
			:: server == NONE -> server = SYN_RECEIVED; b_first_contact = 1
			:: else
			fi;
			send_answer()
		/* inbound_open::resumed */
		:: packet == RESUME && server != ESTABLISHED ->
			if
			:: !b_session || stale || !b_met -> to_a ! RETRY(0)
			:: else -> server = SYN_RECEIVED; send_answer()
			fi
		/* inbound_answer::credential_asked */
		:: packet == RETRY && server == SYN_RECEIVED && !b_retried ->
			b_retried = 1; b_shown = 1; b_first_contact = 1; to_a ! HELLO_REPLY(0)
		/* inbound::confirmed */
		:: packet == CONFIRM && server == SYN_RECEIVED ->
			server = ESTABLISHED;
			if
			:: b_shown -> b_known = 1
			:: else
			fi;
			to_a ! DATA(0)
		/* The acknowledgement that the client waits for, if it got lost. */
		:: packet == CONFIRM && server == ESTABLISHED -> to_a ! DATA(0)
		:: else
		fi;
		packet = 0; stale = 0
	}
	/* The SYN-ACK again. */
	:: atomic { early > 0 && has_room && server == SYN_RECEIVED -> early--; send_answer() }
	od
}

active proctype network() {
	mtype packet;
	bit stale;
end:	do
	:: atomic { losses > 0 && nempty(to_a) -> to_a ? packet, stale; losses--; packet = 0; stale = 0 }
	:: atomic { losses > 0 && nempty(to_b) -> to_b ? packet, stale; losses--; packet = 0; stale = 0 }
	:: atomic { overtaken > 0 && len(to_a) > 1 -> to_a ? packet, stale; to_a ! packet, stale; overtaken--; packet = 0; stale = 0 }
	:: atomic { overtaken > 0 && len(to_b) > 1 -> to_b ? packet, stale; to_b ! packet, stale; overtaken--; packet = 0; stale = 0 }
	:: atomic { doubles > 0 && has_room && nempty(to_a) -> to_a ? packet, stale; to_a ! packet, stale; to_a ! packet, stale; doubles--; packet = 0; stale = 0 }
	:: atomic { doubles > 0 && has_room && nempty(to_b) -> to_b ? packet, stale; to_b ! packet, stale; to_b ! packet, stale; doubles--; packet = 0; stale = 0 }
	od
}

/* Where nothing moves any more, both are live and no one lags behind. */
active proctype judge() {
	atomic {
		timeout && client == ESTABLISHED;
		server_is_live = server == ESTABLISHED;
		assert(server_is_live)
	}
}
