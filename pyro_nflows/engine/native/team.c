/* Threads that share the work of a step: each takes a part of it that nobody has taken, its own first.

   A part that no other thread comes to take is done by the caller, so that a thread which the system does not run holds
   nobody up before it begins. Between two pieces of work a thread looks out for the next one for some milliseconds:
   waking up may take longer than a piece of work, and who comes late finds nothing, and would sleep again. Then, and as
   soon as a run has come to its end, it sleeps. No signal is heard by these threads. */
#include "support.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

/* As many parts as there are bits for. */
#define MOST 32
/* Looks of some 25 nanoseconds each: of a thread for work, and of the caller before it lets others run. */
#define WATCH 100000
#define WAIT 20000
#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ __volatile__("yield")
#else
#define PAUSE() ((void)0)
#endif
#define ALONE __attribute__((aligned(128)))

/* The tickets: which piece of work it is, in the upper half; in the lower one, a bit for each part that can be taken. */
struct team {
  i64 size;
  part_t *work;
  const given_t *given;
  ALONE uint64_t tickets;
  ALONE i64 done;
  ALONE i64 asleep;
  ALONE i64 resting;
  i64 over, left;
  pthread_mutex_t lock;
  pthread_cond_t wake;
};
typedef struct { team_t *team; i64 number; } member_t;

/* Do one part, `mine` if it is there; whether there was one. */
static int one(team_t *team, i64 mine) {
  uint64_t tickets = __atomic_load_n(&team->tickets, __ATOMIC_ACQUIRE);
  while ((uint32_t)tickets) {
    i64 part = tickets >> mine & 1 ? mine : __builtin_ctz((uint32_t)tickets);
    part_t *work = __atomic_load_n(&team->work, __ATOMIC_RELAXED);
    const given_t *given = __atomic_load_n(&team->given, __ATOMIC_RELAXED);
    if (__atomic_compare_exchange_n(&team->tickets, &tickets, tickets & ~(1ull << part), 0, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE)) {
      work(given, part, team->size);
      __atomic_add_fetch(&team->done, 1, __ATOMIC_RELEASE);
      return 1;
    }
  }
  return 0;
}

static int waiting(team_t *team) { return (uint32_t)__atomic_load_n(&team->tickets, __ATOMIC_SEQ_CST) != 0; }

static void forget(team_t *team) {
  if (__atomic_sub_fetch(&team->left, 1, __ATOMIC_ACQ_REL)) return;
  pthread_mutex_destroy(&team->lock);
  pthread_cond_destroy(&team->wake);
  free(team);
}

static void *member(void *given) {
  team_t *team = ((member_t *)given)->team;
  i64 mine = ((member_t *)given)->number;
  free(given);
  for (;;) {
    int quiet = 0;
    while (quiet++ < WATCH && !__atomic_load_n(&team->resting, __ATOMIC_ACQUIRE)) {
      if (one(team, mine)) quiet = 0;
      PAUSE();
    }
    pthread_mutex_lock(&team->lock);
    __atomic_add_fetch(&team->asleep, 1, __ATOMIC_SEQ_CST);
    while (!waiting(team) && !team->over) pthread_cond_wait(&team->wake, &team->lock);
    __atomic_sub_fetch(&team->asleep, 1, __ATOMIC_SEQ_CST);
    int over = team->over;
    pthread_mutex_unlock(&team->lock);
    if (over) break;
  }
  forget(team);
  return 0;
}

/* All parts of a piece of work; back when they are done. */
void team_share(team_t *team, part_t *work, const given_t *given) {
  uint64_t turn = (__atomic_load_n(&team->tickets, __ATOMIC_RELAXED) >> 32) + 1;
  __atomic_store_n(&team->work, work, __ATOMIC_RELAXED);
  __atomic_store_n(&team->given, given, __ATOMIC_RELAXED);
  __atomic_store_n(&team->done, 0, __ATOMIC_RELAXED);
  if (__atomic_load_n(&team->resting, __ATOMIC_RELAXED)) __atomic_store_n(&team->resting, 0, __ATOMIC_RELEASE);
  __atomic_store_n(&team->tickets, turn << 32 | ((1ull << team->size) - 1), __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&team->asleep, __ATOMIC_SEQ_CST)) {
    pthread_mutex_lock(&team->lock);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
  }
  while (one(team, 0)) {
  }
  for (i64 i = 0; __atomic_load_n(&team->done, __ATOMIC_ACQUIRE) < team->size; i++) {
    if (i < WAIT) PAUSE(); else sched_yield();
  }
}

/* So many threads, the caller's included; null if there are none to be had. */
team_t *team_make(i64 size) {
  if (size < 2 || size > MOST) return 0;
  team_t *team = aligned_alloc(128, (sizeof(team_t) + 127) / 128 * 128);
  if (!team) return 0;
  memset(team, 0, sizeof(team_t));
  team->size = size, team->left = size;
  pthread_mutex_init(&team->lock, 0);
  pthread_cond_init(&team->wake, 0);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  i64 made = 1;
  for (; made < size; made++) {
    pthread_t thread;
    member_t *given = malloc(sizeof(member_t));
    if (!given) break;
    given->team = team, given->number = made;
    if (pthread_create(&thread, 0, member, given)) { free(given); break; }
    pthread_detach(thread);
  }
  pthread_sigmask(SIG_SETMASK, &before, 0);
  if (made == size) return team;
  team->left -= size - made; /* nobody has begun to leave: they wait for work */
  pthread_mutex_lock(&team->lock);
  team->over = 1;
  pthread_cond_broadcast(&team->wake);
  pthread_mutex_unlock(&team->lock);
  forget(team);
  return 0;
}

/* Let its threads sleep until there is work again. */
void team_rest(team_t *team) { __atomic_store_n(&team->resting, 1, __ATOMIC_RELEASE); }

/* Let its threads go. */
void team_end(team_t *team) {
  pthread_mutex_lock(&team->lock);
  team->over = 1;
  pthread_cond_broadcast(&team->wake);
  pthread_mutex_unlock(&team->lock);
  forget(team);
}
