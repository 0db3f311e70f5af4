/* _lanemod - plain reads and writes between nbdkit and the volume, without a Python frame.
 *
 * The decisions are lane.py's begin_write and end_write, word for word, over the same Python objects; read that first.
 * What is not plain is handed to the Python functions that the lane was given, before anything has changed (slow_*)
 * or, for a write that was carried out but did not end plainly, with what is known of its legs (conclude).
 *
 * A decision is made under the interpreter's lock and the core's lock (the engine's), which no flow holds between two
 * of its steps: so it is a step like those of the flows.  Both are free while data is read, written or awaited.
 * A read that the page cache answers at once changes nothing and is one step by itself: it needs neither lock of ours.
 *
 * Stream: many threads' writes on one NBD connection, pipelined.  Who has something to send and finds
 * nobody sending sends for all, who waits for an answer and finds nobody reading reads for all; lock order: libnbd's
 * handle, then the stream's mutex.
 */

#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <libnbd.h>
#include <nbdkit-filter.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define VERSION 2
#define NOWAIT_MOST (32 << 10) /* bytes read from the page cache while the interpreter's lock is held */
#define POLL_MS 1000 /* the session's watchdog shuts a socket that is silent for too long */
#define HEARD_SPARE_S 1.0
#define FLIES 128 /* writes in flight without the interpreter's lock */
#define HELD 64 /* of the gate's ranges that the flows hold or wait for */
#define SLOTS (1 << 16) /* a power of two */
#define TOUCHED 1024
#define SENT 4096

#define NAMES(X)                                                                                                       \
  X(is_quiesced) X(is_read_only) X(table) X(header) X(session) X(distrusts) X(in_flight) X(extents) X(gate)            \
  X(counts) X(unflushed) X(queues) X(own_generation) X(woken) X(invalid) X(owed) X(geometry) X(track_size)             \
  X(extent_size) X(_shadow) X(_pending) X(active_on_disk) X(generation_on_disk) X(on_path_loss) X(pair) X(committed)   \
  X(peer_generation) X(last_write) X(_bytes) X(_flip) X(_tickets) X(read_bytes) X(write_bytes) X(mirrored_bytes)       \
  X(note_sent) X(leave) X(wake) X(idle) X(lock) X(acquire) X(release) X(release_woken) X(pins) X(pin) X(sum_s)         \
  X(export) X(_session) X(_pair) X(_heard_at) X(is_open) X(failed) X(running) X(waiters) X(written_bytes)              \
  X(copied_bytes) X(fetched_bytes) X(fetched_tracks) X(_is_for_host) X(target) X(size) X(mark_owed) X(owed_pages_on_disk) X(_claimed) X(marked) X(count)
#define DECLARE(name) static PyObject *n_##name;
NAMES(DECLARE)

static PyObject *ticket_type, *extent_type, *pass_type, *span_type; /* of gate, core, lane and geometry */
static Py_ssize_t ticket_offset, ticket_end, ticket_owner, ticket_blockers, ticket_is_in;
static Py_ssize_t use_in_flight, use_idle;
static PyObject *word_stop;
static long long tracks_per_page, span_most, unflushed_most;
static PyObject *bounds; /* of stats' histograms, a tuple of seconds */
#define BOUNDS 64
static double bound_s[BOUNDS];
static Py_ssize_t bound_count;
static __thread int is_pinned;

/* --- small things --- */

#define SLOT(object, offset) (*(PyObject **)((char *)(object) + (offset)))

static void set_slot(PyObject *object, Py_ssize_t offset, PyObject *value /* stolen */) {
  PyObject *old = SLOT(object, offset);
  SLOT(object, offset) = value;
  Py_XDECREF(old);
}

static void set_slot_int(PyObject *object, Py_ssize_t offset, long long value) {
  PyObject *number = PyLong_FromLongLong(value);
  if (number == NULL) Py_FatalError("pathctl lane: out of memory");
  set_slot(object, offset, number);
}

static long long get_slot_int(PyObject *object, Py_ssize_t offset) { return PyLong_AsLongLong(SLOT(object, offset)); }

/* From here on a decision was made: what fails now would leave half of it. */
static void must(int failed) {
  if (failed) {
    PyErr_Print();
    Py_FatalError("pathctl lane: a change of the volume's state failed half-way");
  }
}

static int get_bool(PyObject *object, PyObject *name) {
  PyObject *value = PyObject_GetAttr(object, name);
  if (value == NULL) return -1;
  int is_true = PyObject_IsTrue(value);
  Py_DECREF(value);
  return is_true;
}

static int get_int(PyObject *object, PyObject *name, long long *number) {
  PyObject *value = PyObject_GetAttr(object, name);
  if (value == NULL) return -1;
  *number = PyLong_AsLongLong(value);
  Py_DECREF(value);
  return *number == -1 && PyErr_Occurred() ? -1 : 0;
}

static int set_int(PyObject *object, PyObject *name, long long number) {
  PyObject *value = PyLong_FromLongLong(number);
  if (value == NULL) return -1;
  int failed = PyObject_SetAttr(object, name, value);
  Py_DECREF(value);
  return failed;
}

static int add_int(PyObject *object, PyObject *name, long long change) {
  long long number;
  return get_int(object, name, &number) || set_int(object, name, number + change) ? -1 : 0;
}

static int is_equal(PyObject *object, PyObject *name, PyObject *other) {
  PyObject *value = PyObject_GetAttr(object, name);
  if (value == NULL) return -1;
  int equal = value == other ? 1 : PyObject_RichCompareBool(value, other, Py_EQ);
  Py_DECREF(value);
  return equal;
}

static double get_time(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* What both lanes have: their owner's engine, the store, and for reads and writes each the Python callback and its times.
 *
 * The mutex is the engine's lock: the lane takes its place there.  Who takes it from Python finds in the Python objects
 * what requests did without the interpreter's lock meanwhile (come_in), and what he changes is known to such requests
 * from when he gives it back (go_out).  So the objects are exact whenever the lock is held, and the state in C
 * whenever it is not held by Python.  Lock order: the mutex, then the interpreter's lock. */
enum { READ, WRITE };
struct border {
  PyObject *engine, *slow[2], *times[2], *counts[2];
  int fd;
  pthread_mutex_t mutex;
  void (*come_in)(PyObject *), (*go_out)(PyObject *);
  long long fresh_counts[2][BOUNDS + 1]; /* of `times`, not added there yet */
  double fresh_sum_s[2];
  int is_fresh;
};

typedef struct {
  PyObject_HEAD
  struct border border;
} Guarded;

/* From (engine, fd, read's histogram, write's, read's callback, write's); the border was empty. */
static int set_border(struct border *border, PyObject *from, void (*come_in)(PyObject *), void (*go_out)(PyObject *)) {
  if (!PyArg_ParseTuple(from, "OiOOOO", &border->engine, &border->fd, &border->times[READ], &border->times[WRITE],
                        &border->slow[READ], &border->slow[WRITE])) {
    memset(border, 0, sizeof *border);
    return -1;
  }
  pthread_mutexattr_t kind;
  pthread_mutexattr_init(&kind);
  pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_ADAPTIVE_NP);
  pthread_mutex_init(&border->mutex, &kind);
  border->come_in = come_in;
  border->go_out = go_out;
  Py_INCREF(border->engine);
  int failed = 0;
  for (int kind = READ; kind <= WRITE; kind++) {
    Py_INCREF(border->times[kind]);
    Py_INCREF(border->slow[kind]);
    border->counts[kind] = PyObject_GetAttr(border->times[kind], n_counts);
    failed |= border->counts[kind] == NULL;
  }
  return failed ? -1 : 0;
}

static void clear_border(struct border *border) {
  Py_CLEAR(border->engine);
  for (int kind = READ; kind <= WRITE; kind++) {
    Py_CLEAR(border->slow[kind]);
    Py_CLEAR(border->times[kind]);
    Py_CLEAR(border->counts[kind]);
  }
}

/* As threading.Lock: waits without the interpreter's lock. */
static void take_lock(void *guarded) {
  Guarded *self = guarded;
  if (pthread_mutex_trylock(&self->border.mutex)) {
    Py_BEGIN_ALLOW_THREADS;
    pthread_mutex_lock(&self->border.mutex);
    Py_END_ALLOW_THREADS;
  }
  self->border.come_in((PyObject *)self);
}

/* An exception that is set stays. */
static void give_lock(void *guarded) {
  Guarded *self = guarded;
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  self->border.go_out((PyObject *)self);
  PyErr_Restore(type, value, trace);
  pthread_mutex_unlock(&self->border.mutex);
}

static PyObject *guarded_acquire(PyObject *self, PyObject *_) {
  take_lock(self);
  Py_RETURN_TRUE;
}

static PyObject *guarded_release(PyObject *self, PyObject *_) {
  give_lock(self);
  Py_RETURN_NONE;
}

#define LOCK_METHODS                                                                                                   \
  {"acquire", guarded_acquire, METH_NOARGS, "As of threading.Lock, without a limit."},                                 \
      {"release", guarded_release, METH_NOARGS, "As of threading.Lock."},                                              \
      {"__enter__", guarded_acquire, METH_NOARGS, NULL}, {"__exit__", guarded_release, METH_VARARGS, NULL}

static Py_ssize_t find_bucket(double elapsed_s) {
  Py_ssize_t at = 0;
  while (at < bound_count && bound_s[at] < elapsed_s) at++;
  return at;
}

/* stats.Histogram.note; the mutex is held. */
static void note_fresh_time(struct border *border, int kind, double elapsed_s) {
  border->fresh_counts[kind][find_bucket(elapsed_s)]++;
  border->fresh_sum_s[kind] += elapsed_s;
  border->is_fresh = 1;
}

static void add_time(struct border *border, int kind, Py_ssize_t at, long long number, double sum_s) {
  PyObject *counts = border->counts[kind];
  PyObject *count = PyLong_FromLongLong(PyLong_AsLongLong(PyList_GET_ITEM(counts, at)) + number);
  must(count == NULL || PyList_SetItem(counts, at, count));
  PyObject *sum = PyObject_GetAttr(border->times[kind], n_sum_s);
  must(sum == NULL);
  PyObject *added = PyFloat_FromDouble(PyFloat_AsDouble(sum) + sum_s);
  Py_DECREF(sum);
  must(added == NULL || PyObject_SetAttr(border->times[kind], n_sum_s, added));
  Py_DECREF(added);
}

static void pour_times(struct border *border) {
  if (!border->is_fresh) return;
  for (int kind = READ; kind <= WRITE; kind++)
    for (Py_ssize_t at = 0; at <= bound_count; at++)
      if (border->fresh_counts[kind][at]) {
        add_time(border, kind, at, border->fresh_counts[kind][at], border->fresh_sum_s[kind]);
        border->fresh_counts[kind][at] = 0;
        border->fresh_sum_s[kind] = 0;
      }
  border->is_fresh = 0;
}

/* stats.Histogram.note; result: what nbdkit is given. */
static PyObject *note_time(struct border *border, int kind, double start) {
  double elapsed_s = get_time() - start;
  add_time(border, kind, find_bucket(elapsed_s), 1, elapsed_s);
  Py_RETURN_NONE;
}

static int pin_thread(PyObject *handle) {
  if (is_pinned) return 0;
  PyObject *pins = PyObject_GetAttr(handle, n_pins);
  if (pins == NULL) return -1;
  PyObject *done = PyObject_CallMethodNoArgs(pins, n_pin);
  Py_DECREF(pins);
  Py_XDECREF(done);
  is_pinned = done != NULL;
  return done == NULL ? -1 : 0;
}

/* --- bits and table --- */

enum { NONE, ALL, SOME };

/* Which of the run's bits are set in the memory of a bitmap.Bitmap: NONE, ALL, SOME; -1: beyond its end. */
static int look_at_memory(const unsigned char *byte, Py_ssize_t length, int flip, long long first, long long count) {
  long long set = 0;
  if (first < 0 || (first + count + 7) / 8 > length) return -1;
  for (long long bit = first; bit < first + count; bit++) set += ((byte[bit >> 3] >> (bit & 7)) & 1) != flip;
  return set == 0 ? NONE : set == count ? ALL : SOME;
}

/* The same of the object; -1 with an exception. */
static int look_at_bits(PyObject *bitmap, long long first, long long count) {
  PyObject *bytes = PyObject_GetAttr(bitmap, n__bytes);
  int flip = get_bool(bitmap, n__flip);
  Py_buffer view;
  if (bytes == NULL || flip < 0 || PyObject_GetBuffer(bytes, &view, PyBUF_SIMPLE)) {
    Py_XDECREF(bytes);
    return -1;
  }
  int found = look_at_memory(view.buf, view.len, flip, first, count);
  PyBuffer_Release(&view);
  Py_DECREF(bytes);
  if (found < 0) PyErr_SetString(PyExc_IndexError, "tracks beyond the end of the volume");
  return found;
}

static int look(PyObject *table, PyObject *name, long long first, long long count) {
  PyObject *bitmap = PyObject_GetAttr(table, name);
  if (bitmap == NULL) return -1;
  int found = look_at_bits(bitmap, first, count);
  Py_DECREF(bitmap);
  return found;
}

/* Whether one page of `pages`, a dict of tracks.Bits, has an invalid bit among `count` from `low` on. */
static int is_page_invalid(PyObject *pages, long long page, long long low, long long count) {
  PyObject *key = PyLong_FromLongLong(page);
  if (key == NULL) return -1;
  PyObject *bits = PyDict_GetItemWithError(pages, key);
  Py_DECREF(key);
  if (bits == NULL) return PyErr_Occurred() ? -1 : 0;
  PyObject *invalid = PyTuple_GetItem(bits, 0);
  if (invalid == NULL) return -1;
  int found = PyObject_IsTrue(invalid);
  if (found <= 0) return found;
  PyObject *shift = PyLong_FromLongLong(low), *mask = NULL, *part = NULL, *high = NULL;
  found = -1;
  if (shift != NULL && (high = PyNumber_Rshift(invalid, shift)) != NULL) {
    mask = PyLong_FromUnsignedLongLong(count >= 64 ? ~0ULL : (1ULL << count) - 1);
    if (mask != NULL && (part = PyNumber_And(high, mask)) != NULL) found = PyObject_IsTrue(part);
  }
  Py_XDECREF(shift);
  Py_XDECREF(high);
  Py_XDECREF(mask);
  Py_XDECREF(part);
  return found;
}

/* tracks.Table.is_settled for tracks that are valid in memory. */
static int is_settled(PyObject *table, long long first, long long count) {
  PyObject *const names[] = {n__shadow, n__pending};
  for (int which = 0; which < 2; which++) {
    PyObject *pages = PyObject_GetAttr(table, names[which]);
    if (pages == NULL) return -1;
    int found = 0;
    for (long long track = first; found == 0 && PyDict_Size(pages) > 0 && track < first + count;) {
      long long page = track / tracks_per_page, low = track % tracks_per_page;
      long long part = first + count - track < tracks_per_page - low ? first + count - track : tracks_per_page - low;
      if (part > 64) part = 64;
      found = is_page_invalid(pages, page, low, part);
      track += part;
    }
    Py_DECREF(pages);
    if (found) return found < 0 ? -1 : 0;
  }
  return 1;
}

/* --- a plain write: lane.Pass, and what its decision needs of the core --- */

struct plain {
  long long offset, length, first, count, first_extent, last_extent, tracks, tracks_per_extent, distrusts;
  int is_mirrored, is_to_mark; /* to mark: the tracks become owed with it */
  PyObject *session; /* an int or None */
  PyObject *ticket;
};

static int get_geometry(PyObject *table, struct plain *plain) {
  PyObject *geometry = PyObject_GetAttr(table, n_geometry);
  long long track_size, extent_size, size;
  if (geometry == NULL) return -1;
  int failed = get_int(geometry, n_track_size, &track_size) || get_int(geometry, n_extent_size, &extent_size) ||
               get_int(geometry, n_size, &size);
  Py_DECREF(geometry);
  if (failed) return -1;
  plain->tracks = (size + track_size - 1) / track_size;
  plain->tracks_per_extent = extent_size / track_size;
  plain->first = plain->offset / track_size;
  plain->count = plain->length == 0 ? 0 : (plain->offset + plain->length - 1) / track_size - plain->first + 1;
  plain->first_extent = plain->offset / extent_size;
  plain->last_extent = plain->length == 0 ? plain->first_extent - 1 : (plain->offset + plain->length - 1) / extent_size;
  return 0;
}

/* checkpoint.needs_generation */
static int needs_generation(PyObject *core, PyObject *table, PyObject *header, PyObject *session) {
  PyObject *durable = PyObject_GetAttr(table, n_generation_on_disk);
  int is_committed = get_bool(header, n_committed);
  int needs = -1;
  if (durable != NULL && is_committed > 0)
    needs = session != Py_None ? 0 : is_equal(header, n_peer_generation, durable);
  else if (durable != NULL && is_committed == 0) {
    needs = is_equal(core, n_own_generation, durable);
    needs = needs < 0 ? -1 : !needs;
  }
  Py_XDECREF(durable);
  return needs;
}

/* checkpoint.is_claimed */
static int is_claimed(PyObject *table, const struct plain *plain, long long extent) {
  PyObject *claimed = PyObject_GetAttr(table, n_owed_pages_on_disk);
  if (claimed == NULL) return -1;
  long long first = extent * plain->tracks_per_extent, last = first + plain->tracks_per_extent - 1;
  if (last >= plain->tracks) last = plain->tracks - 1;
  int found = PySet_GET_SIZE(claimed) > 0;
  for (long long page = first / tracks_per_page; found > 0 && page <= last / tracks_per_page; page++) {
    PyObject *key = PyLong_FromLongLong(page);
    found = key == NULL ? -1 : PySet_Contains(claimed, key);
    Py_XDECREF(key);
  }
  Py_DECREF(claimed);
  return found;
}

/* checkpoint.is_prepared but for the generation: each extent is_recorded. */
static int is_active(PyObject *core, PyObject *table, const struct plain *plain) {
  PyObject *on_disk = PyObject_GetAttr(table, n_active_on_disk), *uses = PyObject_GetAttr(core, n_extents);
  int found = on_disk == NULL || uses == NULL ? -1 : 1;
  for (long long extent = plain->first_extent; found > 0 && extent <= plain->last_extent; extent++) {
    PyObject *key = PyLong_FromLongLong(extent);
    found = key == NULL ? -1 : PySet_Contains(on_disk, key);
    if (found > 0) found = PyDict_Contains(uses, key);
    Py_XDECREF(key);
    if (found == 0) found = is_claimed(table, plain, extent);
  }
  Py_XDECREF(on_disk);
  Py_XDECREF(uses);
  return found;
}

static int is_free(PyObject *tickets, long long offset, long long end) {
  for (Py_ssize_t at = 0; at < PyList_GET_SIZE(tickets); at++) {
    PyObject *other = PyList_GET_ITEM(tickets, at);
    if (offset < get_slot_int(other, ticket_end) && get_slot_int(other, ticket_offset) < end) return 0;
  }
  return 1;
}

static PyObject *get_tickets(PyObject *core) {
  PyObject *gate = PyObject_GetAttr(core, n_gate);
  if (gate == NULL) return NULL;
  PyObject *tickets = PyObject_GetAttr(gate, n__tickets);
  Py_DECREF(gate);
  return tickets;
}

static PyObject *make_ticket(const struct plain *plain) {
  PyTypeObject *type = (PyTypeObject *)ticket_type;
  PyObject *ticket = type->tp_alloc(type, 0);
  if (ticket == NULL) return NULL;
  set_slot_int(ticket, ticket_offset, plain->offset);
  set_slot_int(ticket, ticket_end, plain->offset + plain->length);
  set_slot(ticket, ticket_owner, Py_NewRef(Py_None));
  set_slot_int(ticket, ticket_blockers, 0);
  set_slot(ticket, ticket_is_in, Py_NewRef(Py_True));
  return ticket;
}

static void use_extents(PyObject *core, const struct plain *plain, int change) {
  PyObject *uses = PyObject_GetAttr(core, n_extents);
  must(uses == NULL);
  for (long long extent = plain->first_extent; extent <= plain->last_extent; extent++) {
    PyObject *key = PyLong_FromLongLong(extent);
    must(key == NULL);
    PyObject *use = PyDict_GetItemWithError(uses, key);
    Py_DECREF(key);
    if (use == NULL) continue;
    set_slot_int(use, use_in_flight, get_slot_int(use, use_in_flight) + change);
    set_slot_int(use, use_idle, 0);
  }
  Py_DECREF(uses);
}

/* Whether lane.begin_write says yes; `plain` gets what it found; -1 with an exception.  Changes nothing. */
static int is_plain(PyObject *core, PyObject *table, PyObject *header, PyObject *tickets, struct plain *plain) {
  int found;
  if ((found = get_bool(core, n_is_quiesced)) || (found = get_bool(core, n_is_read_only)) ||
      (found = is_equal(header, n_on_path_loss, word_stop)))
    return found < 0 ? -1 : 0;
  if (get_geometry(table, plain)) return -1;
  if (plain->count <= 0 || plain->count > span_most) return 0;
  if ((found = look(table, n_invalid, plain->first, plain->count))) return found < 0 ? -1 : 0;
  if ((found = is_settled(table, plain->first, plain->count)) <= 0) return found;
  int owed = look(table, n_owed, plain->first, plain->count);
  if (owed < 0 || (owed == SOME && plain->session != Py_None)) return owed < 0 ? -1 : 0;
  int is_alone = is_equal(header, n_pair, Py_None);
  if (is_alone < 0) return -1;
  plain->is_to_mark = !is_alone && plain->session == Py_None && owed != ALL;
  if (!is_alone && (found = is_active(core, table, plain)) <= 0) return found;
  if ((found = needs_generation(core, table, header, plain->session))) return found < 0 ? -1 : 0;
  plain->is_mirrored = plain->session != Py_None && owed != ALL;
  if (get_int(core, n_distrusts, &plain->distrusts)) return -1;
  return is_free(tickets, plain->offset, plain->offset + plain->length);
}

/* tracks.Table.mark_owed */
static void mark_owed(PyObject *table, const struct plain *plain) {
  PyObject *span = PyObject_CallFunction(span_type, "LL", plain->first, plain->count);
  PyObject *done = span == NULL ? NULL : PyObject_CallMethodOneArg(table, n_mark_owed, span);
  must(done == NULL);
  Py_DECREF(span);
  Py_DECREF(done);
}

/* lane.begin_write; `mirrored_session`: the only one in which it may say yes to a mirrored write, NULL: any. */
static int begin_write(PyObject *core, struct plain *plain, PyObject *mirrored_session) {
  PyObject *table = PyObject_GetAttr(core, n_table), *header = NULL, *tickets = NULL;
  int found = -1;
  plain->session = PyObject_GetAttr(core, n_session);
  plain->ticket = NULL;
  if (table == NULL || plain->session == NULL) goto out;
  header = PyObject_GetAttr(table, n_header);
  tickets = get_tickets(core);
  if (header == NULL || tickets == NULL) goto out;
  found = is_plain(core, table, header, tickets, plain);
  if (found > 0 && plain->is_mirrored && mirrored_session != NULL)
    found = PyObject_RichCompareBool(plain->session, mirrored_session, Py_EQ);
  if (found <= 0) goto out;
  plain->ticket = make_ticket(plain);
  must(plain->ticket == NULL || PyList_Append(tickets, plain->ticket) || add_int(core, n_in_flight, 1));
  use_extents(core, plain, 1);
  if (plain->is_to_mark) mark_owed(table, plain);
out:
  Py_XDECREF(table);
  Py_XDECREF(header);
  Py_XDECREF(tickets);
  if (found <= 0) Py_CLEAR(plain->session);
  return found;
}

/* gate.Gate.leave and core.Core.leave_gate */
static void leave_gate(PyObject *core, PyObject *ticket) {
  PyObject *tickets = get_tickets(core);
  must(tickets == NULL);
  Py_ssize_t at = 0;
  while (at < PyList_GET_SIZE(tickets) && PyList_GET_ITEM(tickets, at) != ticket) at++;
  long long offset = get_slot_int(ticket, ticket_offset), end = get_slot_int(ticket, ticket_end);
  must(PyList_SetSlice(tickets, at, at + 1, NULL));
  for (; at < PyList_GET_SIZE(tickets); at++) {
    PyObject *other = PyList_GET_ITEM(tickets, at);
    if (offset >= get_slot_int(other, ticket_end) || get_slot_int(other, ticket_offset) >= end) continue;
    long long blockers = get_slot_int(other, ticket_blockers) - 1;
    set_slot_int(other, ticket_blockers, blockers);
    if (blockers) continue;
    set_slot(other, ticket_is_in, Py_NewRef(Py_True));
    PyObject *done = PyObject_CallMethodOneArg(core, n_wake, SLOT(other, ticket_owner));
    must(done == NULL);
    Py_DECREF(done);
  }
  Py_DECREF(tickets);
}

static int has_queue(PyObject *queues, PyObject *name) {
  PyObject *queue = PyDict_GetItemWithError(queues, name);
  return queue != NULL && PyList_GET_SIZE(queue) > 0;
}

/* core.Core.leave */
static void leave(PyObject *core) {
  PyObject *queues = PyObject_GetAttr(core, n_queues);
  long long in_flight;
  must(queues == NULL || get_int(core, n_in_flight, &in_flight));
  if (has_queue(queues, n_leave) || (in_flight == 1 && has_queue(queues, n_idle))) {
    PyObject *done = PyObject_CallMethodNoArgs(core, n_leave);
    must(done == NULL);
    Py_DECREF(done);
  } else
    must(set_int(core, n_in_flight, in_flight - 1));
  Py_DECREF(queues);
}

static void note_sent(PyObject *core, const struct plain *plain) {
  PyObject *spans = PyObject_GetAttr(core, n_unflushed);
  must(spans == NULL);
  if (PySet_GET_SIZE(spans) < unflushed_most) {
    PyObject *span = Py_BuildValue("(LL)", plain->first, plain->count);
    must(span == NULL || PySet_Add(spans, span));
    Py_DECREF(span);
  } else {
    PyObject *span = PyObject_CallFunction(span_type, "LL", plain->first, plain->count);
    PyObject *done = span == NULL ? NULL : PyObject_CallMethodOneArg(core, n_note_sent, span);
    must(done == NULL);
    Py_DECREF(span);
    Py_DECREF(done);
  }
  Py_DECREF(spans);
}

/* Whether lane.end_write says yes; -1 with an exception.  Changes nothing. */
static int ends_plainly(PyObject *core, PyObject *table, const struct plain *plain) {
  long long distrusts;
  int found;
  if ((found = is_equal(core, n_session, plain->session)) <= 0 || get_int(core, n_distrusts, &distrusts))
    return PyErr_Occurred() ? -1 : 0;
  if (distrusts != plain->distrusts) return 0;
  if ((found = look(table, n_invalid, plain->first, plain->count))) return found < 0 ? -1 : 0;
  if ((found = is_settled(table, plain->first, plain->count)) <= 0 || plain->is_mirrored) return found;
  PyObject *header = PyObject_GetAttr(table, n_header);
  if (header == NULL) return -1;
  int is_alone = is_equal(header, n_pair, Py_None);
  Py_DECREF(header);
  if (is_alone) return is_alone;
  int owed = look(table, n_owed, plain->first, plain->count);
  return owed < 0 ? -1 : owed == ALL;
}

/* lane.end_write */
static int end_write(PyObject *core, const struct plain *plain) {
  PyObject *table = PyObject_GetAttr(core, n_table);
  if (table == NULL) return -1;
  int found = ends_plainly(core, table, plain);
  Py_DECREF(table);
  if (found <= 0) return found;
  PyObject *counts = PyObject_GetAttr(core, n_counts);
  must(counts == NULL);
  if (plain->is_mirrored) {
    note_sent(core, plain);
    must(add_int(counts, n_mirrored_bytes, plain->length));
  }
  must(add_int(counts, n_write_bytes, plain->length));
  Py_DECREF(counts);
  use_extents(core, plain, -1);
  leave_gate(core, plain->ticket);
  leave(core);
  return 1;
}

static void note_last_write(PyObject *core) {
  PyObject *table = PyObject_GetAttr(core, n_table), *header;
  must(table == NULL || (header = PyObject_GetAttr(table, n_header)) == NULL);
  must(set_int(header, n_last_write, (long long)time(NULL)));
  Py_DECREF(table);
  Py_DECREF(header);
}

static PyObject *make_pass(const struct plain *plain) {
  return PyObject_CallFunction(pass_type, "OLLOOL", plain->ticket, plain->first, plain->count,
                               plain->is_mirrored ? Py_True : Py_False, plain->session, plain->distrusts);
}

static void clear_plain(struct plain *plain) {
  Py_CLEAR(plain->session);
  Py_CLEAR(plain->ticket);
}

/* --- streams --- */

/* One write on a stream.  It is the stream's until it is done, its thread's then: whoever ends it posts to `changed`
 * only while `is_waiting`, which the thread does not leave without that post. */
struct request {
  struct stream *stream;
  const void *data;
  size_t length;
  long long offset;
  sem_t changed;
  int is_done, is_waiting, is_submitted, has_baton, error;
  struct request *next, **at, *next_to_send;
};

typedef struct stream {
  PyObject_HEAD
  PyObject *owner; /* the nbd.NBD that the handle belongs to */
  struct nbd_handle *handle;
  int fd, bell; /* bell: an eventfd, rung when the reader is to look for room in the socket too */
  pthread_mutex_t mutex;
  int has_reader, has_sender, has_baton; /* baton: somebody was woken to read */
  struct request *requests, *to_send, **to_send_end;
  long long in_flight, attended, completed; /* requests; attended: being sent or awaited, not written here meanwhile */
  int users; /* writes that have it without a reference; the lane's mutex guards it */
} Stream;

/* The stream's mutex is held; 1 if its thread is to be woken once it is free. */
static int end_request(Stream *stream, struct request *request, int error) {
  request->is_done = 1;
  request->error = error;
  *request->at = request->next;
  if (request->next != NULL) request->next->at = request->at;
  stream->in_flight--;
  stream->completed++;
  int is_waiting = request->is_waiting;
  request->is_waiting = 0;
  return is_waiting;
}

static int note_answer(void *data, int *error) {
  struct request *request = data;
  Stream *stream = request->stream;
  pthread_mutex_lock(&stream->mutex);
  int is_waiting = end_request(stream, request, *error);
  pthread_mutex_unlock(&stream->mutex);
  if (is_waiting) sem_post(&request->changed);
  return 1; /* libnbd forgets the command */
}

static int is_broken(Stream *stream) {
  return nbd_aio_is_dead(stream->handle) || nbd_aio_is_closed(stream->handle);
}

static int is_full(Stream *stream) {
  return (nbd_aio_get_direction(stream->handle) & LIBNBD_AIO_DIRECTION_WRITE) != 0;
}

static int has_reader(Stream *stream) {
  pthread_mutex_lock(&stream->mutex);
  int has = stream->has_reader;
  pthread_mutex_unlock(&stream->mutex);
  return has;
}

/* What the socket has no room for is the reader's to send, who may not know of it yet.  While there is none, the
 * sender does it, and the others go on: they will read when they wait, and answers are read however much is queued. */
static void send_rest(Stream *stream) {
  while (is_full(stream) && !has_reader(stream)) {
    struct pollfd wanted = {.fd = stream->fd, .events = POLLOUT};
    poll(&wanted, 1, POLL_MS);
    if (nbd_aio_notify_write(stream->handle) == -1 && is_broken(stream)) break;
  }
  if (is_full(stream) && has_reader(stream)) eventfd_write(stream->bell, 1);
}

static void submit(Stream *stream, struct request *request) {
  pthread_mutex_lock(&stream->mutex);
  request->is_submitted = 1;
  pthread_mutex_unlock(&stream->mutex);
  nbd_completion_callback answered = {.callback = note_answer, .user_data = request};
  if (nbd_aio_pwrite(stream->handle, request->data, request->length, (uint64_t)request->offset, answered, 0) != -1)
    return;
  int error = nbd_get_errno(), is_waiting = 0;
  pthread_mutex_lock(&stream->mutex);
  if (!request->is_done) is_waiting = end_request(stream, request, error ? error : EIO);
  pthread_mutex_unlock(&stream->mutex);
  if (is_waiting) sem_post(&request->changed);
}

/* Everything that waits to be sent, in its order; by one thread at a time, so that no other waits for the handle. */
static void send_all(Stream *stream) {
  for (;;) {
    pthread_mutex_lock(&stream->mutex);
    struct request *request = stream->to_send;
    stream->to_send = NULL;
    stream->to_send_end = &stream->to_send;
    if (request == NULL) stream->has_sender = 0;
    pthread_mutex_unlock(&stream->mutex);
    if (request == NULL) return;
    while (request != NULL) {
      struct request *next = request->next_to_send; /* once it is submitted it may end at any time */
      submit(stream, request);
      request = next;
    }
    if (is_full(stream)) send_rest(stream);
  }
}

/* Without the interpreter's lock.  What fails here is told by stream_wait. */
static void stream_send(Stream *stream, struct request *request, const void *data, size_t length, long long offset) {
  *request = (struct request){.stream = stream, .data = data, .length = length, .offset = offset};
  sem_init(&request->changed, 0, 0);
  __atomic_add_fetch(&stream->attended, 1, __ATOMIC_RELAXED);
  pthread_mutex_lock(&stream->mutex);
  request->next = stream->requests;
  request->at = &stream->requests;
  if (request->next != NULL) request->next->at = &request->next;
  stream->requests = request;
  stream->in_flight++;
  *stream->to_send_end = request;
  stream->to_send_end = &request->next_to_send;
  int is_sender = !stream->has_sender;
  stream->has_sender = 1;
  pthread_mutex_unlock(&stream->mutex);
  if (is_sender) send_all(stream);
  __atomic_sub_fetch(&stream->attended, 1, __ATOMIC_RELAXED);
}

/* What has come, and what could not be sent before (libnbd sends nothing while an answer is half read); 1 if broken. */
static int read_answers(Stream *stream) {
  struct pollfd wanted[] = {{.fd = stream->fd, .events = is_full(stream) ? POLLIN | POLLOUT : POLLIN},
                            {.fd = stream->bell, .events = POLLIN}};
  poll(wanted, 2, POLL_MS);
  eventfd_t count;
  int failed = 0;
  if (wanted[1].revents) eventfd_read(stream->bell, &count);
  if (wanted[0].revents & ~POLLOUT) failed = nbd_aio_notify_read(stream->handle) == -1;
  if (wanted[0].revents & POLLOUT) nbd_aio_notify_write(stream->handle);
  return failed && is_broken(stream);
}

/* The mutex is held, and nobody reads: one of those who wait is to, once it is free. */
static struct request *find_reader(Stream *stream) {
  if (stream->has_reader || stream->has_baton) return NULL;
  struct request *next = stream->requests;
  while (next != NULL && !next->is_waiting) next = next->next; /* who does not wait yet will read when it does */
  if (next == NULL) return NULL;
  next->is_waiting = 0;
  next->has_baton = stream->has_baton = 1;
  return next;
}

/* The mutex is held, before and after. */
static void read_or_wait(Stream *stream, struct request *request) {
  if (!stream->has_reader) {
    stream->has_reader = 1;
    pthread_mutex_unlock(&stream->mutex);
    int broken = read_answers(stream);
    pthread_mutex_lock(&stream->mutex);
    stream->has_reader = 0;
    if (broken && !request->is_done && request->is_submitted) end_request(stream, request, ENOTCONN);
    return;
  }
  request->is_waiting = 1;
  pthread_mutex_unlock(&stream->mutex);
  while (sem_wait(&request->changed)) continue; /* EINTR */
  pthread_mutex_lock(&stream->mutex);
  if (request->has_baton) request->has_baton = stream->has_baton = 0;
}

/* Returns the errno of the answer, 0 if it was good.  Without the interpreter's lock. */
static int stream_wait(Stream *stream, struct request *request) {
  __atomic_add_fetch(&stream->attended, 1, __ATOMIC_RELAXED);
  pthread_mutex_lock(&stream->mutex);
  while (!request->is_done) read_or_wait(stream, request);
  struct request *next = find_reader(stream);
  pthread_mutex_unlock(&stream->mutex);
  if (next != NULL) sem_post(&next->changed);
  __atomic_sub_fetch(&stream->attended, 1, __ATOMIC_RELAXED);
  sem_destroy(&request->changed);
  return request->error;
}

static int stream_init(Stream *self, PyObject *args, PyObject *kwargs) {
  static char *words[] = {"handle", NULL};
  PyObject *owner;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O", words, &owner)) return -1;
  PyObject *capsule = PyObject_GetAttrString(owner, "_o");
  if (capsule == NULL) return -1;
  self->handle = PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule));
  Py_DECREF(capsule);
  if (self->handle == NULL) return -1;
  Py_XSETREF(self->owner, Py_NewRef(owner));
  self->fd = nbd_aio_get_fd(self->handle);
  if (self->bell <= 0 && (self->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
    return PyErr_SetFromErrno(PyExc_OSError), -1;
  pthread_mutex_init(&self->mutex, NULL);
  self->to_send_end = &self->to_send;
  return 0;
}

static void stream_dealloc(Stream *self) {
  if (self->bell > 0) close(self->bell);
  Py_XDECREF(self->owner);
  Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMemberDef stream_members[] = {
    {"in_flight", T_LONGLONG, offsetof(Stream, in_flight), READONLY, "requests under way"},
    {"attended", T_LONGLONG, offsetof(Stream, attended), READONLY, "requests being sent or awaited"},
    {"completed", T_LONGLONG, offsetof(Stream, completed), READONLY, "requests answered"},
    {NULL},
};

static PyTypeObject stream_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "nbdplugin._lane.Stream",
    .tp_doc = "Many threads' writes on the connected handle of an nbd.NBD, which nobody else uses.",
    .tp_basicsize = sizeof(Stream),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)stream_init,
    .tp_dealloc = (destructor)stream_dealloc,
    .tp_members = stream_members,
};

/* --- the host's lane --- */

/* A write in flight that took no interpreter's lock.  `ticket`: once Python's gate knows of it.  OVER: ended since. */
enum { FREE, ON_WAY, OVER };
struct fly {
  int state, is_mirrored, is_to_mark;
  long long offset, end, first, count, first_extent, last_extent, session, distrusts;
  Stream *stream;
  PyObject *ticket;
};

/* What was found of an extent under Python's lock, good while `stamp` is the lane's: writes to it may start as far as
 * recorded extents go, and no valid track of it is invalid on disk.  `change`: of its use count, not poured yet. */
struct slot {
  long long extent;
  unsigned long long stamp;
  int change, is_touched;
  int is_kept; /* the table keeps what the disk says of its pages, so that marks may be set in memory alone */
};

struct plane {
  PyObject *bytes;
  Py_buffer view;
  int flip;
};

/* What the facts in the slots rest on: whenever one of these is another, all are asked anew. */
struct basis {
  PyObject *active_on_disk;
  unsigned long long extents, shadow, pending, claims;
  int is_paired;
};

struct range {
  long long offset, end;
};

typedef struct {
  PyObject_HEAD
  struct border border;
  PyObject *core, *tickets, *conclude, *conclude_alone;
  PyObject *session; /* of the stream */
  Stream *stream;    /* NULL: mirrored writes are not plain */
  PyObject *retired; /* streams of sessions that ended, while writes use them */
  int is_nowait, is_simulated;
  /* as Python has it */
  int is_readable, is_writable, is_paired, needs_wake;
  long long now_session, distrusts; /* session: -1 for None */
  Stream *now_stream;
  long long track_size, extent_size, tracks;
  struct plane invalid, owed;
  struct basis basis;
  unsigned long long stamp;
  struct range held[HELD];
  int held_count;
  /* what Python does not know of yet */
  struct fly flies[FLIES];
  int fly_top;
  long long in_flight, in_flight_known;
  struct slot *slots;
  int touched[TOUCHED], touched_count;
  long long sent[SENT][2];
  int sent_count;
  long long read_bytes, write_bytes, mirrored_bytes;
  long long marked; /* tracks that became owed */
  long long flown;
} Lane;

static void lane_come_in(PyObject *lane);
static void lane_go_out(PyObject *lane);
static Lane *the_lane; /* that the filter asks */

static void lane_dealloc(Lane *self) {
  clear_border(&self->border);
  Py_CLEAR(self->core);
  Py_CLEAR(self->tickets);
  Py_CLEAR(self->conclude);
  Py_CLEAR(self->conclude_alone);
  Py_CLEAR(self->session);
  Py_CLEAR(self->stream);
  Py_CLEAR(self->retired);
  Py_CLEAR(self->basis.active_on_disk);
  struct plane *const planes[] = {&self->invalid, &self->owed};
  for (int which = 0; which < 2; which++)
    if (planes[which]->bytes != NULL) {
      PyBuffer_Release(&planes[which]->view);
      Py_CLEAR(planes[which]->bytes);
    }
  free(self->slots);
  Py_TYPE(self)->tp_free((PyObject *)self);
}

static int set_sizes(Lane *self) {
  PyObject *table = PyObject_GetAttr(self->core, n_table);
  PyObject *geometry = table == NULL ? NULL : PyObject_GetAttr(table, n_geometry);
  long long size;
  Py_XDECREF(table);
  if (geometry == NULL) return -1;
  int failed = get_int(geometry, n_track_size, &self->track_size) ||
               get_int(geometry, n_extent_size, &self->extent_size) || get_int(geometry, n_size, &size);
  Py_DECREF(geometry);
  if (!failed) self->tracks = (size + self->track_size - 1) / self->track_size;
  return failed ? -1 : 0;
}

static PyObject *lane_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *words[] = {"border", "core", "conclude", "conclude_alone", NULL};
  PyObject *border, *core, *conclude, *conclude_alone;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OOO", words, &PyTuple_Type, &border, &core, &conclude,
                                   &conclude_alone))
    return NULL;
  Lane *self = (Lane *)type->tp_alloc(type, 0);
  if (self == NULL) return NULL;
  self->core = Py_NewRef(core);
  self->conclude = Py_NewRef(conclude);
  self->conclude_alone = Py_NewRef(conclude_alone);
  self->session = Py_NewRef(Py_None);
  self->is_nowait = 1;
  self->stamp = 1;
  self->slots = calloc(SLOTS, sizeof *self->slots);
  self->tickets = get_tickets(core);
  self->retired = PyList_New(0);
  if (self->slots == NULL || self->tickets == NULL || self->retired == NULL || set_sizes(self) ||
      set_border(&self->border, border, lane_come_in, lane_go_out)) {
    Py_DECREF(self);
    return PyErr_Occurred() ? NULL : PyErr_NoMemory();
  }
  lane_go_out((PyObject *)self);
  return (PyObject *)self;
}

/* The lock is held.  What writes still have of the old stream stays until they are done with it. */
static PyObject *lane_set_stream(Lane *self, PyObject *args) {
  PyObject *session, *stream;
  if (!PyArg_ParseTuple(args, "OO", &session, &stream)) return NULL;
  if (stream != Py_None && Py_TYPE(stream) != &stream_type)
    return PyErr_Format(PyExc_TypeError, "a stream is a Stream or None");
  Stream *old = self->stream;
  if (old != NULL && old->users && PyList_Append(self->retired, (PyObject *)old)) return NULL;
  self->stream = stream == Py_None ? NULL : (Stream *)Py_NewRef(stream);
  Py_SETREF(self->session, Py_NewRef(session));
  Py_XDECREF((PyObject *)old);
  Py_RETURN_NONE;
}

static int release_woken(PyObject *core, PyObject *engine) {
  PyObject *woken = PyObject_GetAttr(core, n_woken);
  if (woken == NULL) return -1;
  Py_ssize_t count = PyList_GET_SIZE(woken);
  Py_DECREF(woken);
  if (count == 0) return 0;
  PyObject *done = PyObject_CallMethodNoArgs(engine, n_release_woken);
  Py_XDECREF(done);
  return done == NULL ? -1 : 0;
}

/* --- come in: Python learns what was done without it --- */

static void publish_flies(Lane *self) {
  int top = 0;
  for (int at = 0; at < self->fly_top; at++) {
    struct fly *fly = &self->flies[at];
    if (fly->state == ON_WAY && fly->ticket == NULL) {
      struct plain plain = {.offset = fly->offset, .length = fly->end - fly->offset};
      fly->ticket = make_ticket(&plain);
      must(fly->ticket == NULL || PyList_Append(self->tickets, fly->ticket));
    } else if (fly->state == OVER) { /* nobody waits for it: else it would have ended with Python */
      Py_ssize_t place = 0;
      while (place < PyList_GET_SIZE(self->tickets) && PyList_GET_ITEM(self->tickets, place) != fly->ticket) place++;
      must(PyList_SetSlice(self->tickets, place, place + 1, NULL));
      Py_CLEAR(fly->ticket);
      fly->state = FREE;
    }
    if (fly->state != FREE) top = at + 1;
  }
  self->fly_top = top;
  if (self->in_flight == self->in_flight_known) return;
  must(add_int(self->core, n_in_flight, self->in_flight - self->in_flight_known));
  self->in_flight_known = self->in_flight;
}

static void pour_uses(Lane *self) {
  if (self->touched_count == 0) return;
  PyObject *uses = PyObject_GetAttr(self->core, n_extents);
  must(uses == NULL);
  for (int at = 0; at < self->touched_count; at++) {
    struct slot *slot = &self->slots[self->touched[at]];
    PyObject *key = PyLong_FromLongLong(slot->extent);
    must(key == NULL);
    PyObject *use = PyDict_GetItemWithError(uses, key);
    Py_DECREF(key);
    if (use != NULL) {
      set_slot_int(use, use_in_flight, get_slot_int(use, use_in_flight) + slot->change);
      set_slot_int(use, use_idle, 0);
    }
    slot->change = slot->is_touched = 0;
  }
  Py_DECREF(uses);
  self->touched_count = 0;
}

static void pour_counts(Lane *self) {
  for (int at = 0; at < self->sent_count; at++) {
    struct plain plain = {.first = self->sent[at][0], .count = self->sent[at][1]};
    note_sent(self->core, &plain);
  }
  self->sent_count = 0;
  pour_times(&self->border);
  if (!self->read_bytes && !self->write_bytes) return;
  PyObject *counts = PyObject_GetAttr(self->core, n_counts);
  must(counts == NULL || add_int(counts, n_read_bytes, self->read_bytes) ||
       add_int(counts, n_write_bytes, self->write_bytes) || add_int(counts, n_mirrored_bytes, self->mirrored_bytes));
  Py_DECREF(counts);
  if (self->write_bytes && !self->is_simulated) note_last_write(self->core);
  self->read_bytes = self->write_bytes = self->mirrored_bytes = 0;
}

static void pour_marked(Lane *self) {
  PyObject *table = PyObject_GetAttr(self->core, n_table), *owed;
  must(table == NULL || (owed = PyObject_GetAttr(table, n_owed)) == NULL);
  must(add_int(owed, n_count, self->marked) || add_int(table, n_marked, self->marked));
  Py_DECREF(owed);
  Py_DECREF(table);
  self->marked = 0;
}

static void drop_retired(Lane *self) {
  for (Py_ssize_t at = PyList_GET_SIZE(self->retired) - 1; at >= 0; at--)
    if (((Stream *)PyList_GET_ITEM(self->retired, at))->users == 0)
      must(PyList_SetSlice(self->retired, at, at + 1, NULL));
}

static void lane_come_in(PyObject *lane) {
  Lane *self = (Lane *)lane;
  publish_flies(self);
  pour_uses(self);
  pour_counts(self);
  if (self->marked) pour_marked(self);
  if (PyList_GET_SIZE(self->retired)) drop_retired(self);
}

/* --- go out: what requests without the interpreter's lock may rely on from here on --- */

static void look_at_plane(struct plane *plane, PyObject *table, PyObject *name) {
  PyObject *bitmap = PyObject_GetAttr(table, name);
  must(bitmap == NULL);
  PyObject *bytes = PyObject_GetAttr(bitmap, n__bytes);
  plane->flip = get_bool(bitmap, n__flip);
  must(bytes == NULL || plane->flip < 0);
  Py_DECREF(bitmap);
  if (bytes == plane->bytes) {
    Py_DECREF(bytes);
    return;
  }
  if (plane->bytes != NULL) {
    PyBuffer_Release(&plane->view);
    Py_DECREF(plane->bytes);
  }
  plane->bytes = bytes;
  must(PyObject_GetBuffer(bytes, &plane->view, PyBUF_WRITABLE));
}

/* A number that is another one after each change of a dict; 0 of an empty one. */
static unsigned long long get_version(PyObject *owner, PyObject *name) {
  PyObject *dict = PyObject_GetAttr(owner, name);
  must(dict == NULL);
  unsigned long long version = PyDict_GET_SIZE(dict) ? ((PyDictObject *)dict)->ma_version_tag : 0;
  Py_DECREF(dict);
  return version;
}

static void look_at_basis(Lane *self, PyObject *table) {
  struct basis found = {.active_on_disk = PyObject_GetAttr(table, n_active_on_disk), .is_paired = self->is_paired};
  must(found.active_on_disk == NULL);
  found.extents = get_version(self->core, n_extents);
  found.shadow = get_version(table, n__shadow);
  found.pending = get_version(table, n__pending);
  found.claims = get_version(table, n__claimed);
  struct basis *old = &self->basis;
  if (found.active_on_disk != old->active_on_disk || found.extents != old->extents || found.shadow != old->shadow ||
      found.pending != old->pending || found.claims != old->claims || found.is_paired != old->is_paired)
    self->stamp++;
  Py_XDECREF(old->active_on_disk);
  *old = found;
}

/* The flows' places in the gate; -1: too many. */
static int look_at_gate(Lane *self) {
  int are_blocked = 0;
  self->held_count = 0;
  for (Py_ssize_t at = 0; at < PyList_GET_SIZE(self->tickets); at++) {
    PyObject *ticket = PyList_GET_ITEM(self->tickets, at);
    int is_own = 0;
    for (int fly = 0; !is_own && fly < self->fly_top; fly++) is_own = self->flies[fly].ticket == ticket;
    if (is_own) continue;
    if (self->held_count == HELD) return -1;
    struct range *range = &self->held[self->held_count++];
    range->offset = get_slot_int(ticket, ticket_offset);
    range->end = get_slot_int(ticket, ticket_end);
    are_blocked |= SLOT(ticket, ticket_is_in) != Py_True;
  }
  return are_blocked;
}

static void look_at_session(Lane *self, PyObject *session) {
  self->now_session = session == Py_None ? -1 : PyLong_AsLongLong(session);
  must(PyErr_Occurred() != NULL);
  int is_streams = self->stream != NULL && session != Py_None ? PyObject_RichCompareBool(self->session, session, Py_EQ) : 0;
  must(is_streams < 0);
  self->now_stream = is_streams ? self->stream : NULL;
}

static void look_at_waiters(Lane *self) {
  PyObject *queues = PyObject_GetAttr(self->core, n_queues);
  must(queues == NULL);
  int blocked = look_at_gate(self);
  self->needs_wake = blocked || has_queue(queues, n_leave) || has_queue(queues, n_idle);
  if (blocked < 0) self->is_writable = 0;
  Py_DECREF(queues);
}

static void lane_go_out(PyObject *lane) {
  Lane *self = (Lane *)lane;
  PyObject *core = self->core, *table = PyObject_GetAttr(core, n_table), *session = PyObject_GetAttr(core, n_session);
  must(table == NULL || session == NULL);
  PyObject *header = PyObject_GetAttr(table, n_header);
  must(header == NULL || get_int(core, n_distrusts, &self->distrusts));
  int is_quiesced = get_bool(core, n_is_quiesced), is_read_only = get_bool(core, n_is_read_only);
  int is_stopping = is_equal(header, n_on_path_loss, word_stop), is_alone = is_equal(header, n_pair, Py_None);
  int needs = needs_generation(core, table, header, session);
  must(is_quiesced < 0 || is_read_only < 0 || is_stopping < 0 || is_alone < 0 || needs < 0);
  self->is_readable = !is_quiesced;
  self->is_writable = !is_quiesced && !is_read_only && !is_stopping && !needs;
  self->is_paired = !is_alone;
  look_at_session(self, session);
  look_at_plane(&self->invalid, table, n_invalid);
  look_at_plane(&self->owed, table, n_owed);
  look_at_basis(self, table);
  look_at_waiters(self);
  Py_DECREF(table);
  Py_DECREF(header);
  Py_DECREF(session);
}

/* Whether the table's shadow has every page of these tracks. */
static int is_kept(PyObject *table, long long first, long long count) {
  PyObject *shadow = PyObject_GetAttr(table, n__shadow);
  must(shadow == NULL);
  int found = 1;
  for (long long page = first / tracks_per_page; found && page <= (first + count - 1) / tracks_per_page; page++) {
    PyObject *key = PyLong_FromLongLong(page);
    must(key == NULL);
    found = PyDict_Contains(shadow, key);
    Py_DECREF(key);
  }
  must(found < 0);
  Py_DECREF(shadow);
  return found;
}

/* The lock is held: what is_plain found of the extents is good for those that come after, until something changes. */
static void note_extents(Lane *self, PyObject *table, const struct plain *plain) {
  long long per = self->extent_size / self->track_size;
  for (long long extent = plain->first_extent; extent <= plain->last_extent; extent++) {
    struct slot *slot = &self->slots[extent & (SLOTS - 1)];
    long long first = extent * per, count = first + per <= self->tracks ? per : self->tracks - first;
    if (slot->extent == extent && slot->stamp == self->stamp) continue;
    int settled = is_settled(table, first, count);
    must(settled < 0);
    if (settled) *slot = (struct slot){.extent = extent, .stamp = self->stamp, .is_kept = is_kept(table, first, count)};
  }
}

static int write_all(int fd, const char *data, size_t length, long long offset) {
  while (length > 0) {
    ssize_t count = pwrite(fd, data, length, offset);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return count < 0 ? errno : EIO;
    data += count;
    length -= (size_t)count;
    offset += count;
  }
  return 0;
}

static int read_all(int fd, char *data, size_t length, long long offset) {
  while (length > 0) {
    ssize_t count = pread(fd, data, length, offset);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return count < 0 ? errno : EIO;
    data += count;
    length -= (size_t)count;
    offset += count;
  }
  return 0;
}

/* `stream`: of a mirrored write, else NULL; the caller's.  Taken first: the session may end while this decides. */
static int lane_begin(Lane *self, struct plain *plain, Stream **stream) {
  *stream = NULL;
  take_lock(self);
  PyObject *taken = Py_XNewRef((PyObject *)self->stream), *session = Py_NewRef(taken ? self->session : Py_None);
  int found = begin_write(self->core, plain, session);
  Py_DECREF(session);
  if (found > 0) {
    PyObject *table = PyObject_GetAttr(self->core, n_table);
    must(table == NULL);
    note_extents(self, table, plain);
    Py_DECREF(table);
  }
  if (found > 0 && plain->is_mirrored)
    *stream = (Stream *)taken;
  else
    Py_XDECREF(taken);
  give_lock(self);
  return found;
}

/* The lock is held. */
static int end_with_objects(Lane *self, struct plain *plain) {
  int found = end_write(self->core, plain);
  if (found > 0) {
    must(release_woken(self->core, self->border.engine));
    if (!self->is_simulated) note_last_write(self->core);
  }
  return found;
}

static int lane_end(Lane *self, struct plain *plain) {
  take_lock(self);
  int found = end_with_objects(self, plain);
  give_lock(self);
  return found;
}

/* nbdkit's pwrite(handle, buf, offset, flags) */
static PyObject *lane_pwrite(Lane *self, PyObject *const *args, Py_ssize_t count) {
  if (count != 4) return PyErr_Format(PyExc_TypeError, "pwrite takes handle, buf, offset, flags");
  double start = get_time();
  long flags = PyLong_AsLong(args[3]);
  struct plain plain = {.offset = PyLong_AsLongLong(args[2])};
  Py_buffer view;
  if (PyErr_Occurred() || pin_thread(args[0])) return NULL;
  if (flags) return PyObject_Vectorcall(self->border.slow[WRITE], args, 4, NULL);
  if (PyObject_GetBuffer(args[1], &view, PyBUF_SIMPLE)) return NULL;
  plain.length = view.len;
  Stream *stream;
  int found = lane_begin(self, &plain, &stream);
  if (found <= 0) {
    PyBuffer_Release(&view);
    return found < 0 ? NULL : PyObject_Vectorcall(self->border.slow[WRITE], args, 4, NULL);
  }
  int local_error, peer_error = 0;
  struct request request;
  Py_BEGIN_ALLOW_THREADS;
  if (stream != NULL) stream_send(stream, &request, view.buf, (size_t)view.len, plain.offset);
  local_error = write_all(self->border.fd, view.buf, (size_t)view.len, plain.offset);
  if (stream != NULL) peer_error = stream_wait(stream, &request);
  Py_END_ALLOW_THREADS;
  PyBuffer_Release(&view);
  int is_lost = stream != NULL && peer_error && (is_broken(stream) || peer_error == ESHUTDOWN);
  Py_XDECREF((PyObject *)stream);
  found = local_error || peer_error ? 0 : lane_end(self, &plain);
  must(found < 0);
  PyObject *result = NULL;
  if (found > 0) {
    result = note_time(&self->border, WRITE, start);
  } else {
    PyObject *pass = make_pass(&plain);
    must(pass == NULL);
    result = PyObject_CallFunction(self->conclude, "OOOOiiid", args[0], args[1], args[2], pass, local_error,
                                   peer_error, is_lost, get_time() - start);
    Py_DECREF(pass);
  }
  clear_plain(&plain);
  return result;
}

/* 1 if the tracks may be read now; takes a place in flight if `enter`.  The core's lock is held if `enter`. */
static int may_read(Lane *self, struct plain *plain, int enter) {
  int found = get_bool(self->core, n_is_quiesced);
  if (found) return found < 0 ? -1 : 0;
  PyObject *table = PyObject_GetAttr(self->core, n_table);
  if (table == NULL) return -1;
  found = get_geometry(table, plain) ? -1 : look(table, n_invalid, plain->first, plain->count);
  Py_DECREF(table);
  if (found) return found < 0 ? -1 : 0;
  if (enter && (get_int(self->core, n_distrusts, &plain->distrusts) || add_int(self->core, n_in_flight, 1))) return -1;
  return 1;
}

static PyObject *note_read(Lane *self, long long length, double start) {
  PyObject *counts = PyObject_GetAttr(self->core, n_counts);
  if (counts == NULL) return NULL;
  int failed = add_int(counts, n_read_bytes, length);
  Py_DECREF(counts);
  return failed ? NULL : note_time(&self->border, READ, start);
}

/* With the interpreter's lock free; 1 if the data is good, 0 if the flows are to read. */
static int read_in_flight(Lane *self, struct plain *plain, Py_buffer *view) {
  take_lock(self);
  int found = may_read(self, plain, 1);
  give_lock(self);
  if (found <= 0) return found;
  int error;
  Py_BEGIN_ALLOW_THREADS;
  error = read_all(self->border.fd, view->buf, (size_t)view->len, plain->offset);
  Py_END_ALLOW_THREADS;
  take_lock(self);
  long long distrusts;
  must(get_int(self->core, n_distrusts, &distrusts));
  leave(self->core);
  must(release_woken(self->core, self->border.engine));
  give_lock(self);
  return !error && distrusts == plain->distrusts; /* else a failed sync may have dropped what was written */
}

/* nbdkit's pread(handle, buf, offset, flags) */
static PyObject *lane_pread(Lane *self, PyObject *const *args, Py_ssize_t count) {
  if (count != 4) return PyErr_Format(PyExc_TypeError, "pread takes handle, buf, offset, flags");
  double start = get_time();
  struct plain plain = {.offset = PyLong_AsLongLong(args[2])};
  Py_buffer view;
  if (PyErr_Occurred() || pin_thread(args[0]) || PyObject_GetBuffer(args[1], &view, PyBUF_WRITABLE)) return NULL;
  plain.length = view.len;
  int found = may_read(self, &plain, 0), is_done = 0;
  if (found > 0 && self->is_nowait && view.len <= NOWAIT_MOST) {
    struct iovec part = {.iov_base = view.buf, .iov_len = (size_t)view.len};
    ssize_t got = preadv2(self->border.fd, &part, 1, plain.offset, RWF_NOWAIT);
    is_done = got == view.len;
    if (got < 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) self->is_nowait = 0;
  }
  if (found > 0 && !is_done) {
    found = read_in_flight(self, &plain, &view);
    is_done = found > 0;
  }
  PyBuffer_Release(&view);
  if (found < 0) return NULL;
  if (!is_done) return PyObject_Vectorcall(self->border.slow[READ], args, 4, NULL);
  return note_read(self, plain.length, start);
}

/* --- reads and writes that take no interpreter's lock: the mutex is held where nothing else is said --- */

static int look_at(const struct plane *plane, long long first, long long count) {
  return look_at_memory(plane->view.buf, plane->view.len, plane->flip, first, count);
}

static struct slot *find_slot_of(Lane *self, long long extent) {
  struct slot *slot = &self->slots[extent & (SLOTS - 1)];
  return slot->extent == extent && slot->stamp == self->stamp ? slot : NULL;
}

/* Whether each extent is known to be good and its use count may be changed. */
static int are_extents_known(Lane *self, const struct fly *fly) {
  if (self->touched_count + fly->last_extent - fly->first_extent >= TOUCHED) return 0;
  for (long long extent = fly->first_extent; extent <= fly->last_extent; extent++)
    if (find_slot_of(self, extent) == NULL) return 0;
  return 1;
}

static void touch_extents(Lane *self, const struct fly *fly, int change) {
  for (long long extent = fly->first_extent; extent <= fly->last_extent; extent++) {
    struct slot *slot = find_slot_of(self, extent);
    slot->change += change;
    if (!slot->is_touched) self->touched[self->touched_count++] = (int)(slot - self->slots);
    slot->is_touched = 1;
  }
}

static int is_range_free(Lane *self, const struct fly *fly) {
  for (int at = 0; at < self->held_count; at++)
    if (fly->offset < self->held[at].end && self->held[at].offset < fly->end) return 0;
  for (int at = 0; at < self->fly_top; at++) {
    const struct fly *other = &self->flies[at];
    if (other->state == ON_WAY && fly->offset < other->end && other->offset < fly->end) return 0;
  }
  return 1;
}

static int are_pages_kept(Lane *self, const struct fly *fly) {
  for (long long extent = fly->first_extent; extent <= fly->last_extent; extent++)
    if (!find_slot_of(self, extent)->is_kept) return 0;
  return 1;
}

/* As lane.begin_write, or no where it would have to be looked at longer.  `fly` gets what is found. */
static int may_fly(Lane *self, struct fly *fly) {
  if (!self->is_writable || fly->end <= fly->offset) return 0;
  fly->first = fly->offset / self->track_size;
  fly->count = (fly->end - 1) / self->track_size - fly->first + 1;
  if (fly->count > span_most || fly->first + fly->count > self->tracks) return 0;
  if (look_at(&self->invalid, fly->first, fly->count) != NONE) return 0;
  int owed = look_at(&self->owed, fly->first, fly->count);
  if (owed == SOME && self->now_session >= 0) return 0;
  fly->is_to_mark = self->is_paired && self->now_session < 0 && owed != ALL;
  fly->is_mirrored = self->now_session >= 0 && owed != ALL;
  if (fly->is_mirrored && self->now_stream == NULL && !self->is_simulated) return 0;
  fly->first_extent = fly->offset / self->extent_size;
  fly->last_extent = (fly->end - 1) / self->extent_size;
  return are_extents_known(self, fly) && is_range_free(self, fly) && (!fly->is_to_mark || are_pages_kept(self, fly));
}

/* tracks.Table.mark_owed, for tracks of which none is invalid. */
static void mark_fly(Lane *self, const struct fly *fly) {
  unsigned char *byte = self->owed.view.buf;
  for (long long track = fly->first; track < fly->first + fly->count; track++) {
    unsigned char bit = (unsigned char)(1 << (track & 7));
    if (!(byte[track >> 3] & bit) != !self->owed.flip) continue; /* it is set */
    byte[track >> 3] ^= bit;
    self->marked++;
  }
}

/* NULL: the write is Python's, and nothing has changed. */
static struct fly *begin_fly(Lane *self, long long offset, long long length) {
  struct fly wanted = {.state = ON_WAY, .offset = offset, .end = offset + length};
  int at = 0;
  while (at < FLIES && self->flies[at].state != FREE) at++;
  if (at == FLIES || !may_fly(self, &wanted)) return NULL;
  wanted.session = self->now_session;
  wanted.distrusts = self->distrusts;
  wanted.stream = wanted.is_mirrored ? self->now_stream : NULL;
  if (wanted.stream != NULL) wanted.stream->users++;
  self->flies[at] = wanted;
  if (at >= self->fly_top) self->fly_top = at + 1;
  self->in_flight++;
  touch_extents(self, &wanted, 1);
  if (wanted.is_to_mark) mark_fly(self, &wanted);
  return &self->flies[at];
}

static void leave_stream(struct fly *fly) {
  if (fly->stream != NULL) fly->stream->users--;
  fly->stream = NULL;
}

/* lane.end_write, or no where Python has to be there.  Every leg has succeeded. */
static int end_fly(Lane *self, struct fly *fly) {
  if (self->needs_wake || self->now_session != fly->session || self->distrusts != fly->distrusts) return 0;
  if (look_at(&self->invalid, fly->first, fly->count) != NONE || !are_extents_known(self, fly)) return 0;
  if (!fly->is_mirrored && self->is_paired && look_at(&self->owed, fly->first, fly->count) != ALL) return 0;
  if (fly->is_mirrored) {
    if (self->sent_count == SENT) return 0;
    self->sent[self->sent_count][0] = fly->first;
    self->sent[self->sent_count++][1] = fly->count;
    self->mirrored_bytes += fly->end - fly->offset;
  }
  self->write_bytes += fly->end - fly->offset;
  touch_extents(self, fly, -1);
  leave_stream(fly);
  fly->state = fly->ticket == NULL ? FREE : OVER;
  self->in_flight--;
  return 1;
}

/* The lock is held: from here on Python's objects alone stand for the write. */
static void hand_over(Lane *self, struct fly *fly, struct plain *plain) {
  *plain = (struct plain){.offset = fly->offset,
                          .length = fly->end - fly->offset,
                          .first = fly->first,
                          .count = fly->count,
                          .first_extent = fly->first_extent,
                          .last_extent = fly->last_extent,
                          .distrusts = fly->distrusts,
                          .is_mirrored = fly->is_mirrored,
                          .ticket = fly->ticket};
  plain->session = fly->session < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(fly->session);
  must(plain->session == NULL);
  fly->ticket = NULL;
  fly->state = FREE;
  self->in_flight--;
  self->in_flight_known--;
}

struct legs {
  int local_error, peer_error, is_lost;
};

/* Takes the interpreter's lock; returns the errno for the client. */
static int end_in_python(Lane *self, struct fly *fly, const void *data, struct legs legs, double start) {
  PyGILState_STATE state = PyGILState_Ensure();
  struct plain plain;
  take_lock(self);
  leave_stream(fly);
  hand_over(self, fly, &plain);
  int found = legs.local_error || legs.peer_error ? 0 : end_with_objects(self, &plain), error = 0;
  must(found < 0);
  if (found > 0) note_fresh_time(&self->border, WRITE, get_time() - start);
  give_lock(self);
  if (found == 0) {
    PyObject *pass = make_pass(&plain), *view = PyMemoryView_FromMemory((char *)data, plain.length, PyBUF_READ);
    must(pass == NULL || view == NULL);
    PyObject *number = PyObject_CallFunction(self->conclude_alone, "OOiiid", view, pass, legs.local_error,
                                             legs.peer_error, legs.is_lost, get_time() - start);
    must(number == NULL);
    error = (int)PyLong_AsLong(number);
    Py_DECREF(number);
    Py_DECREF(pass);
    Py_DECREF(view);
  }
  clear_plain(&plain);
  PyGILState_Release(state);
  return error;
}

/* Without any lock; 0 if Python is to do it, 1 if it is done, `error` then being what the client is told. */
static int fly_write(Lane *self, const void *data, uint32_t length, uint64_t offset, int *error) {
  double start = get_time();
  pthread_mutex_lock(&self->border.mutex);
  struct fly *fly = begin_fly(self, (long long)offset, length);
  pthread_mutex_unlock(&self->border.mutex);
  if (fly == NULL) return 0;
  struct request request;
  struct legs legs = {0};
  Stream *stream = fly->stream;
  if (stream != NULL) stream_send(stream, &request, data, length, (long long)offset);
  legs.local_error = write_all(self->border.fd, data, length, (long long)offset);
  if (stream != NULL) legs.peer_error = stream_wait(stream, &request);
  legs.is_lost = legs.peer_error && (is_broken(stream) || legs.peer_error == ESHUTDOWN);
  *error = 0;
  int is_done = 0;
  if (!legs.local_error && !legs.peer_error) {
    pthread_mutex_lock(&self->border.mutex);
    is_done = end_fly(self, fly);
    if (is_done) note_fresh_time(&self->border, WRITE, get_time() - start);
    self->flown += is_done;
    pthread_mutex_unlock(&self->border.mutex);
  }
  if (!is_done) *error = end_in_python(self, fly, data, legs, start);
  return 1;
}

static void end_read_in_python(Lane *self) {
  PyGILState_STATE state = PyGILState_Ensure();
  take_lock(self);
  self->in_flight--;
  self->in_flight_known--;
  leave(self->core);
  must(release_woken(self->core, self->border.engine));
  give_lock(self);
  PyGILState_Release(state);
}

/* Without any lock; 1 if the data is good, else Python is to read. */
static int fly_read(Lane *self, void *data, uint32_t length, uint64_t offset) {
  double start = get_time();
  long long first = (long long)offset / self->track_size;
  long long count = length == 0 ? 0 : (long long)(offset + length - 1) / self->track_size - first + 1;
  pthread_mutex_lock(&self->border.mutex);
  int is_plain = self->is_readable && count > 0 && look_at(&self->invalid, first, count) == NONE;
  long long distrusts = self->distrusts;
  self->in_flight += is_plain;
  pthread_mutex_unlock(&self->border.mutex);
  if (!is_plain) return 0;
  int failed = read_all(self->border.fd, data, length, (long long)offset);
  pthread_mutex_lock(&self->border.mutex);
  int is_good = !failed && distrusts == self->distrusts; /* else a failed sync may have dropped what was written */
  int needs_wake = self->needs_wake;
  if (is_good) {
    self->read_bytes += length;
    note_fresh_time(&self->border, READ, get_time() - start);
  }
  if (!needs_wake) self->in_flight--;
  pthread_mutex_unlock(&self->border.mutex);
  if (needs_wake) end_read_in_python(self);
  return is_good;
}

/* From here on the filter asks this lane. */
static PyObject *lane_serve(Lane *self, PyObject *_) {
  Py_XSETREF(the_lane, (Lane *)Py_NewRef((PyObject *)self));
  Py_RETURN_NONE;
}

/* --- the same by steps, for the simulator: where a real request would find the lock free, so does this --- */

/* Writes that ended with an error are concluded by the flows, which do not tell. */
static void forget_concluded(Lane *self) {
  for (int at = 0; at < self->fly_top; at++) {
    struct fly *fly = &self->flies[at];
    int is_there = fly->state == FREE;
    for (Py_ssize_t place = 0; !is_there && place < PyList_GET_SIZE(self->tickets); place++)
      is_there = PyList_GET_ITEM(self->tickets, place) == fly->ticket;
    struct plain plain;
    if (is_there) continue;
    hand_over(self, fly, &plain);
    clear_plain(&plain);
  }
}

/* What a write to the same extents just before would have left, which the simulator is too short for. */
static void note_extents_ahead(Lane *self, struct plain *plain) {
  PyObject *table = PyObject_GetAttr(self->core, n_table);
  must(table == NULL || get_geometry(table, plain));
  int found = self->is_paired ? is_active(self->core, table, plain) : 1;
  must(found < 0);
  if (found) note_extents(self, table, plain);
  Py_DECREF(table);
}

/* (offset, length): as lane.begin_write */
static PyObject *lane_begin_step(Lane *self, PyObject *args) {
  struct plain plain = {0};
  if (!PyArg_ParseTuple(args, "LL", &plain.offset, &plain.length)) return NULL;
  self->is_simulated = 1;
  forget_concluded(self);
  lane_go_out((PyObject *)self);
  note_extents_ahead(self, &plain);
  struct fly *fly = begin_fly(self, plain.offset, plain.length);
  lane_come_in((PyObject *)self);
  if (fly != NULL)
    return PyObject_CallFunction(pass_type, "OLLONL", fly->ticket, fly->first, fly->count,
                                 fly->is_mirrored ? Py_True : Py_False,
                                 fly->session < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(fly->session),
                                 fly->distrusts);
  int found = begin_write(self->core, &plain, NULL);
  if (found <= 0) return found < 0 ? NULL : Py_NewRef(Py_None);
  PyObject *result = make_pass(&plain);
  clear_plain(&plain);
  return result;
}

/* (pass): as lane.end_write; None where the write is not one that began without Python. */
static PyObject *lane_end_step(Lane *self, PyObject *pass) {
  PyObject *ticket = PyObject_GetAttrString(pass, "ticket");
  if (ticket == NULL) return NULL;
  Py_DECREF(ticket);
  int at = 0;
  while (at < self->fly_top && (self->flies[at].state == FREE || self->flies[at].ticket != ticket)) at++;
  if (at == self->fly_top) Py_RETURN_NONE;
  lane_go_out((PyObject *)self);
  int found = end_fly(self, &self->flies[at]);
  lane_come_in((PyObject *)self);
  if (found) {
    self->flown++;
    Py_RETURN_TRUE;
  }
  struct plain plain;
  hand_over(self, &self->flies[at], &plain);
  found = end_with_objects(self, &plain);
  clear_plain(&plain);
  return found < 0 ? NULL : PyBool_FromLong(found);
}

static PyMemberDef lane_members[] = {
    {"flown", T_LONGLONG, offsetof(Lane, flown), READONLY, "writes that took no interpreter's lock"},
    {NULL},
};

static PyMethodDef lane_methods[] = {
    LOCK_METHODS,
    {"pread", (PyCFunction)(void (*)(void))lane_pread, METH_FASTCALL, "nbdkit's callback"},
    {"pwrite", (PyCFunction)(void (*)(void))lane_pwrite, METH_FASTCALL, "nbdkit's callback"},
    {"set_stream", (PyCFunction)lane_set_stream, METH_VARARGS, "(session, its stream or None) from here on; the lock is held"},
    {"serve", (PyCFunction)lane_serve, METH_NOARGS, "The filter asks this lane from here on."},
    {"begin_step", (PyCFunction)lane_begin_step, METH_VARARGS, "For the simulator."},
    {"end_step", (PyCFunction)lane_end_step, METH_O, "For the simulator."},
    {NULL},
};

static PyTypeObject lane_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "nbdplugin._lane.Lane",
    .tp_doc = "The host's plain reads and writes of one volume.",
    .tp_basicsize = sizeof(Lane),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = lane_new,
    .tp_dealloc = (destructor)lane_dealloc,
    .tp_methods = lane_methods,
    .tp_members = lane_members,
};

/* --- the destination's lane: target.Target's read and write for a session that is open and was heard just now --- */

typedef struct {
  PyObject_HEAD
  struct border border;
  PyObject *owner, *target, *header, *export_type;
  long long track_size;
  /* as Python has it */
  int is_open, has_failed, needs_wake;
  long long session;
  PyObject *pair;
  unsigned long long pair_stamp; /* another one for each pair */
  double heard_s;                /* monotonic; when the source was last heard of */
  /* what Python does not know of yet */
  long long running, running_known; /* requests of `session` */
  long long read_bytes, written_bytes, copied_bytes, fetched_bytes, fetched_tracks;
} TargetLane;

static void target_come_in(PyObject *lane);
static void target_go_out(PyObject *lane);
static TargetLane *the_target; /* that the filter asks */

static void target_dealloc(TargetLane *self) {
  clear_border(&self->border);
  Py_CLEAR(self->owner);
  Py_CLEAR(self->target);
  Py_CLEAR(self->header);
  Py_CLEAR(self->export_type);
  Py_CLEAR(self->pair);
  Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *target_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *words[] = {"border", "owner", "target", "header", "track_size", "export_type", NULL};
  PyObject *border, *owner, *target, *header, *export_type;
  long long track_size;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OOOLO", words, &PyTuple_Type, &border, &owner, &target, &header,
                                   &track_size, &export_type))
    return NULL;
  TargetLane *self = (TargetLane *)type->tp_alloc(type, 0);
  if (self == NULL) return NULL;
  self->owner = Py_NewRef(owner);
  self->target = Py_NewRef(target);
  self->header = Py_NewRef(header);
  self->export_type = Py_NewRef(export_type);
  self->track_size = track_size;
  self->session = -1;
  self->heard_s = -1e9;
  if (set_border(&self->border, border, target_come_in, target_go_out)) {
    Py_DECREF(self);
    return NULL;
  }
  target_go_out((PyObject *)self);
  return (PyObject *)self;
}

static void change_running(TargetLane *self, long long session, long long change) {
  PyObject *running = PyObject_GetAttr(self->target, n_running), *key = PyLong_FromLongLong(session);
  must(running == NULL || key == NULL);
  PyObject *count = PyDict_GetItemWithError(running, key);
  PyObject *more = PyLong_FromLongLong((count == NULL ? 0 : PyLong_AsLongLong(count)) + change);
  must(more == NULL || PyDict_SetItem(running, key, more));
  Py_DECREF(more);
  Py_DECREF(key);
  Py_DECREF(running);
}

static void target_come_in(PyObject *lane) {
  TargetLane *self = (TargetLane *)lane;
  pour_times(&self->border);
  if (self->running != self->running_known) change_running(self, self->session, self->running - self->running_known);
  self->running_known = self->running;
  if (!self->read_bytes && !self->written_bytes) return;
  PyObject *target = self->target;
  must(add_int(target, n_read_bytes, self->read_bytes) || add_int(target, n_written_bytes, self->written_bytes) ||
       add_int(target, n_copied_bytes, self->copied_bytes) || add_int(target, n_fetched_bytes, self->fetched_bytes) ||
       add_int(target, n_fetched_tracks, self->fetched_tracks));
  if (self->written_bytes) must(set_int(self->header, n_last_write, (long long)time(NULL)));
  self->read_bytes = self->written_bytes = self->copied_bytes = self->fetched_bytes = self->fetched_tracks = 0;
}

static void target_go_out(PyObject *lane) {
  TargetLane *self = (TargetLane *)lane;
  long long session;
  PyObject *pair = PyObject_GetAttr(self->header, n_pair), *waiters = PyObject_GetAttr(self->target, n_waiters);
  PyObject *heard = PyObject_GetAttr(self->owner, n__heard_at);
  must(pair == NULL || waiters == NULL || heard == NULL || get_int(self->header, n_session, &session));
  self->is_open = get_bool(self->target, n_is_open);
  self->has_failed = !is_equal(self->target, n_failed, Py_None);
  self->needs_wake = PyList_GET_SIZE(waiters) > 0;
  must(PyErr_Occurred() != NULL);
  if (session != self->session) self->running = self->running_known = 0; /* those of before are Python's to count */
  self->session = session;
  if (pair != self->pair) self->pair_stamp++;
  if (PyFloat_CheckExact(heard) && PyFloat_AS_DOUBLE(heard) > self->heard_s) self->heard_s = PyFloat_AS_DOUBLE(heard);
  Py_XSETREF(self->pair, pair);
  Py_DECREF(waiters);
  Py_DECREF(heard);
}

/* When the source was last heard of; None: never. */
static PyObject *target_heard(TargetLane *self, PyObject *_) {
  if (self->heard_s < 0) Py_RETURN_NONE;
  return PyFloat_FromDouble(self->heard_s);
}

/* service.PeerService.hear, while nothing is unusual about it; the mutex is held. */
static int hear(TargetLane *self, double now) {
  if (now - self->heard_s >= HEARD_SPARE_S) return 0;
  if (now > self->heard_s) self->heard_s = now;
  return 1;
}

/* service._fence and target.Target.enter; counts the request as running.  The target's lock is held. */
static int target_enter(TargetLane *self, PyObject *export, PyObject *session, PyObject *pair, int is_write) {
  int found = get_bool(self->target, n_is_open);
  if (found <= 0) return found;
  if ((found = is_equal(self->header, n_session, session)) <= 0) return found;
  if ((found = is_equal(self->header, n_pair, pair)) <= 0) return found;
  if (is_write && (found = is_equal(self->target, n_failed, Py_None)) <= 0) return found;
  PyObject *running = PyObject_GetAttr(self->target, n_running);
  if (running == NULL) return -1;
  PyObject *count = PyDict_GetItemWithError(running, session);
  PyObject *more = PyLong_FromLongLong(count == NULL ? 1 : PyLong_AsLongLong(count) + 1);
  int failed = more == NULL || PyDict_SetItem(running, session, more);
  Py_XDECREF(more);
  Py_DECREF(running);
  return failed ? -1 : 1;
}

/* target.Target.leave */
static int target_leave(TargetLane *self, PyObject *session) {
  PyObject *done = PyObject_CallMethodOneArg(self->target, n_leave, session);
  Py_XDECREF(done);
  return done == NULL || release_woken(self->target, self->border.engine) ? -1 : 0;
}

/* What the filter knows of one connection, once Python has served a request of it. */
struct connection {
  int is_known, is_for_host;
  long long session;
  unsigned long long pair_stamp;
};
static __thread struct connection *this_connection;

static int count_write(TargetLane *self, PyObject *export, long long length) {
  int is_for_host = get_bool(export, n__is_for_host);
  if (is_for_host < 0 || add_int(self->target, n_written_bytes, length)) return -1;
  if (!is_for_host && add_int(self->target, n_copied_bytes, length)) return -1;
  return set_int(self->header, n_last_write, (long long)time(NULL));
}

static int count_read(TargetLane *self, PyObject *export, long long offset, long long length) {
  int is_for_host = get_bool(export, n__is_for_host);
  if (is_for_host < 0 || add_int(self->target, n_read_bytes, length)) return -1;
  if (!is_for_host) return 0;
  long long tracks = length ? (offset + length - 1) / self->track_size - offset / self->track_size + 1 : 0;
  return add_int(self->target, n_fetched_bytes, length) || add_int(self->target, n_fetched_tracks, tracks) ? -1 : 0;
}

struct turn {
  PyObject *export, *session, *pair;
};

static void end_turn(struct turn *turn) {
  Py_CLEAR(turn->export);
  Py_CLEAR(turn->session);
  Py_CLEAR(turn->pair);
}

/* 1 once the request counts as running, 0 where Python is to look at it. */
static int begin_turn(TargetLane *self, PyObject *handle, int is_write, double now, struct turn *turn) {
  turn->export = PyObject_GetAttr(handle, n_export);
  if (turn->export == NULL) return -1;
  if ((PyObject *)Py_TYPE(turn->export) != self->export_type) return 0;
  turn->session = PyObject_GetAttr(turn->export, n__session);
  turn->pair = PyObject_GetAttr(turn->export, n__pair);
  if (turn->session == NULL || turn->pair == NULL) return -1;
  take_lock(self);
  int found = hear(self, now) ? target_enter(self, turn->export, turn->session, turn->pair, is_write) : 0;
  if (found > 0 && this_connection != NULL && turn->pair == self->pair) {
    this_connection->session = PyLong_AsLongLong(turn->session);
    this_connection->pair_stamp = self->pair_stamp;
    this_connection->is_for_host = get_bool(turn->export, n__is_for_host);
    this_connection->is_known = 1;
  }
  give_lock(self);
  return found;
}

/* nbdkit's pread and pwrite.  What fails here is tried again by Python, which tells of it. */
static PyObject *target_serve(TargetLane *self, PyObject *const *args, int is_write) {
  double start = get_time();
  long long offset = PyLong_AsLongLong(args[2]);
  long flags = PyLong_AsLong(args[3]);
  PyObject *slow = self->border.slow[is_write ? WRITE : READ];
  struct turn turn = {NULL, NULL, NULL};
  Py_buffer view;
  if (PyErr_Occurred() || pin_thread(args[0])) return NULL;
  if (flags) return PyObject_Vectorcall(slow, args, 4, NULL);
  if (PyObject_GetBuffer(args[1], &view, is_write ? PyBUF_SIMPLE : PyBUF_WRITABLE)) return NULL;
  int found = begin_turn(self, args[0], is_write, start, &turn), error = 0;
  if (found > 0) {
    Py_BEGIN_ALLOW_THREADS;
    error = is_write ? write_all(self->border.fd, view.buf, (size_t)view.len, offset)
                     : read_all(self->border.fd, view.buf, (size_t)view.len, offset);
    Py_END_ALLOW_THREADS;
    take_lock(self);
    int failed = 0;
    if (!error)
      failed = is_write ? count_write(self, turn.export, view.len) : count_read(self, turn.export, offset, view.len);
    must(failed || target_leave(self, turn.session));
    give_lock(self);
  }
  PyBuffer_Release(&view);
  end_turn(&turn);
  if (found < 0) return NULL;
  if (found == 0 || error) return PyObject_Vectorcall(slow, args, 4, NULL);
  return note_time(&self->border, is_write ? WRITE : READ, start);
}

static PyObject *target_pread(TargetLane *self, PyObject *const *args, Py_ssize_t count) {
  if (count != 4) return PyErr_Format(PyExc_TypeError, "pread takes handle, buf, offset, flags");
  return target_serve(self, args, 0);
}

static PyObject *target_pwrite(TargetLane *self, PyObject *const *args, Py_ssize_t count) {
  if (count != 4) return PyErr_Format(PyExc_TypeError, "pwrite takes handle, buf, offset, flags");
  return target_serve(self, args, 1);
}

/* --- and those that take no interpreter's lock --- */

static void count_fly(TargetLane *self, const struct connection *connection, int is_write, uint64_t offset,
                      uint32_t length) {
  long long track = self->track_size, tracks = length ? (long long)(offset + length - 1) / track - (long long)offset / track + 1 : 0;
  if (is_write) {
    self->written_bytes += length;
    if (!connection->is_for_host) self->copied_bytes += length;
  } else {
    self->read_bytes += length;
    if (connection->is_for_host) self->fetched_bytes += length, self->fetched_tracks += tracks;
  }
}

static void leave_in_python(TargetLane *self, long long number) {
  PyGILState_STATE state = PyGILState_Ensure();
  take_lock(self);
  if (number == self->session) self->running--, self->running_known--;
  PyObject *session = PyLong_FromLongLong(number);
  must(session == NULL || target_leave(self, session));
  Py_DECREF(session);
  give_lock(self);
  PyGILState_Release(state);
}

/* Without any lock; 1 if it is done, else Python is to do it. */
static int fly_target(TargetLane *self, const struct connection *connection, int is_write, void *data, uint32_t length,
                      uint64_t offset) {
  double start = get_time();
  if (!connection->is_known) return 0;
  long long number = connection->session;
  pthread_mutex_lock(&self->border.mutex);
  int is_usual = self->is_open && number == self->session && connection->pair_stamp == self->pair_stamp &&
                 !(is_write && self->has_failed) && hear(self, start);
  self->running += is_usual;
  pthread_mutex_unlock(&self->border.mutex);
  if (!is_usual) return 0;
  int failed = is_write ? write_all(self->border.fd, data, length, (long long)offset)
                        : read_all(self->border.fd, data, length, (long long)offset);
  pthread_mutex_lock(&self->border.mutex);
  if (!failed) {
    count_fly(self, connection, is_write, offset, length);
    note_fresh_time(&self->border, is_write ? WRITE : READ, get_time() - start);
  }
  int is_plain = !self->needs_wake && number == self->session;
  if (is_plain) self->running--;
  pthread_mutex_unlock(&self->border.mutex);
  if (!is_plain) leave_in_python(self, number);
  return !failed;
}

static PyObject *target_serve_filter(TargetLane *self, PyObject *_) {
  Py_XSETREF(the_target, (TargetLane *)Py_NewRef((PyObject *)self));
  Py_RETURN_NONE;
}

static PyMethodDef target_methods[] = {
    LOCK_METHODS,
    {"serve", (PyCFunction)target_serve_filter, METH_NOARGS, "The filter asks this lane from here on."},
    {"heard", (PyCFunction)target_heard, METH_NOARGS, "When the source was last heard of; None: never."},
    {"pread", (PyCFunction)(void (*)(void))target_pread, METH_FASTCALL, "nbdkit's callback"},
    {"pwrite", (PyCFunction)(void (*)(void))target_pwrite, METH_FASTCALL, "nbdkit's callback"},
    {NULL},
};

static PyTypeObject target_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "nbdplugin._lane.TargetLane",
    .tp_doc = "The destination's plain reads and writes of one volume.",
    .tp_basicsize = sizeof(TargetLane),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = target_new,
    .tp_dealloc = (destructor)target_dealloc,
    .tp_methods = target_methods,
};

/* --- the filter: in front of nbdkit's Python plugin, in the same process and file --- */

static int is_filter_loaded;

static void filter_load(void) { is_filter_loaded = 1; }

static void *filter_open(nbdkit_next_open *next, nbdkit_context *context, int readonly, const char *name, int is_tls) {
  struct connection *connection = calloc(1, sizeof *connection);
  if (connection != NULL && next(context, readonly, name) == 0) return connection;
  free(connection);
  return NULL;
}

static void filter_close(void *handle) { free(handle); }

static int filter_pread(nbdkit_next *next, void *handle, void *data, uint32_t length, uint64_t offset, uint32_t flags,
                        int *error) {
  if (the_lane != NULL && !flags && fly_read(the_lane, data, length, offset)) return 0;
  if (the_target != NULL && !flags && fly_target(the_target, handle, 0, data, length, offset)) return 0;
  this_connection = handle;
  int failed = next->pread(next, data, length, offset, flags, error);
  this_connection = NULL;
  return failed;
}

static int filter_pwrite(nbdkit_next *next, void *handle, const void *data, uint32_t length, uint64_t offset,
                         uint32_t flags, int *error) {
  if (the_lane != NULL && !flags && fly_write(the_lane, data, length, offset, error)) return *error ? -1 : 0;
  if (the_target != NULL && !flags && fly_target(the_target, handle, 1, (void *)data, length, offset)) return 0;
  this_connection = handle;
  int failed = next->pwrite(next, data, length, offset, flags, error);
  this_connection = NULL;
  return failed;
}

static struct nbdkit_filter filter = {
    .name = "pathctl",
    .longname = "pathctl's lane",
    .description = "plain reads and writes without Python's interpreter lock",
    .load = filter_load,
    .open = filter_open,
    .close = filter_close,
    .pread = filter_pread,
    .pwrite = filter_pwrite,
};

NBDKIT_REGISTER_FILTER(filter)

static PyObject *py_is_filter_loaded(PyObject *module, PyObject *_) { return PyBool_FromLong(is_filter_loaded); }

/* --- the two decisions by themselves, for the simulator --- */

static PyObject *py_begin_write(PyObject *module, PyObject *args) {
  PyObject *core;
  struct plain plain = {0};
  if (!PyArg_ParseTuple(args, "OLL", &core, &plain.offset, &plain.length)) return NULL;
  int found = begin_write(core, &plain, NULL);
  if (found < 0) return NULL;
  PyObject *result = found ? make_pass(&plain) : Py_NewRef(Py_None);
  clear_plain(&plain);
  return result;
}

static PyObject *py_end_write(PyObject *module, PyObject *args) {
  PyObject *core, *pass, *mirrored;
  struct plain plain = {0};
  if (!PyArg_ParseTuple(args, "OO", &core, &pass)) return NULL;
  plain.ticket = PyObject_GetAttrString(pass, "ticket");
  plain.session = PyObject_GetAttrString(pass, "session");
  mirrored = PyObject_GetAttrString(pass, "is_mirrored");
  PyObject *table = PyObject_GetAttr(core, n_table), *result = NULL;
  if (plain.ticket == NULL || plain.session == NULL || mirrored == NULL || table == NULL) goto out;
  plain.is_mirrored = PyObject_IsTrue(mirrored);
  plain.offset = get_slot_int(plain.ticket, ticket_offset);
  plain.length = get_slot_int(plain.ticket, ticket_end) - plain.offset;
  if (get_int(pass, n_distrusts, &plain.distrusts) || get_geometry(table, &plain)) goto out;
  int found = end_write(core, &plain);
  if (found >= 0) result = PyBool_FromLong(found);
out:
  Py_XDECREF(mirrored);
  Py_XDECREF(table);
  clear_plain(&plain);
  return result;
}

/* --- module --- */

static Py_ssize_t find_slot(PyObject *type, const char *name) {
  PyObject *member = PyObject_GetAttrString(type, name);
  if (member == NULL) return -1;
  Py_ssize_t offset = -1;
  if (Py_TYPE(member) == &PyMemberDescr_Type && ((PyMemberDescrObject *)member)->d_member->type == T_OBJECT_EX)
    offset = ((PyMemberDescrObject *)member)->d_member->offset;
  else
    PyErr_Format(PyExc_TypeError, "%s is no slot of %R", name, type);
  Py_DECREF(member);
  return offset;
}

static int set_bounds(PyObject *bounds) {
  bound_count = PyTuple_Size(bounds);
  if (bound_count < 0 || bound_count > BOUNDS) return -1;
  for (Py_ssize_t at = 0; at < bound_count; at++) bound_s[at] = PyFloat_AsDouble(PyTuple_GET_ITEM(bounds, at));
  return PyErr_Occurred() ? -1 : 0;
}

/* What it shares with the Python modules, which it does not import itself. */
static PyObject *set_up(PyObject *module, PyObject *args, PyObject *kwargs) {
  static char *words[] = {"ticket",    "extent",         "pass_",     "span", "stop", "tracks_per_page",
                          "span_most", "unflushed_most", "bounds_s", NULL};
  PyObject *stop;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOLLLO!", words, &ticket_type, &extent_type, &pass_type, &span_type,
                                   &stop, &tracks_per_page, &span_most, &unflushed_most, &PyTuple_Type, &bounds))
    return NULL;
  Py_INCREF(ticket_type);
  Py_INCREF(extent_type);
  Py_INCREF(pass_type);
  Py_INCREF(span_type);
  word_stop = Py_NewRef(stop);
  if ((ticket_offset = find_slot(ticket_type, "offset")) < 0 || (ticket_end = find_slot(ticket_type, "end")) < 0 ||
      (ticket_owner = find_slot(ticket_type, "owner")) < 0 ||
      (ticket_blockers = find_slot(ticket_type, "blockers")) < 0 ||
      (ticket_is_in = find_slot(ticket_type, "is_in")) < 0 ||
      (use_in_flight = find_slot(extent_type, "in_flight")) < 0 || (use_idle = find_slot(extent_type, "idle")) < 0 ||
      set_bounds(bounds))
    return NULL;
  Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"set_up", (PyCFunction)(void (*)(void))set_up, METH_VARARGS | METH_KEYWORDS, "Call once, before anything else."},
    {"begin_write", py_begin_write, METH_VARARGS, "lane.begin_write"},
    {"end_write", py_end_write, METH_VARARGS, "lane.end_write"},
    {"is_filter_loaded", py_is_filter_loaded, METH_NOARGS, "Whether nbdkit has this file as its filter too."},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "nbdplugin._lane", .m_doc = "See lane.py.", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__lane(void) {
#define INTERN(name)                                                                                                   \
  if ((n_##name = PyUnicode_InternFromString(#name)) == NULL) return NULL;
  NAMES(INTERN)
  PyObject *module = PyModule_Create(&definition);
  if (module == NULL) return NULL;
  if (PyModule_AddType(module, &stream_type) || PyModule_AddType(module, &lane_type) || PyModule_AddType(module, &target_type) ||
      PyModule_AddIntConstant(module, "VERSION", VERSION) ||
      PyModule_AddStringConstant(module, "NBDKIT", NBDKIT_VERSION_STRING)) {
    Py_DECREF(module);
    return NULL;
  }
  return module;
}
