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
 * Stream: many threads' writes on one NBD connection, pipelined.  Whoever waits for an answer and finds nobody
 * reading reads for all; lock order: libnbd's handle, then the stream's mutex.
 */

#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <libnbd.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define VERSION 1
#define NOWAIT_MOST (32 << 10) /* bytes read from the page cache while the interpreter's lock is held */
#define POLL_MS 1000 /* the session's watchdog shuts a socket that is silent for too long */
#define HEARD_SPARE_S 1.0

#define NAMES(X)                                                                                                       \
  X(is_quiesced) X(is_read_only) X(table) X(header) X(session) X(distrusts) X(in_flight) X(extents) X(gate)            \
  X(counts) X(unflushed) X(queues) X(own_generation) X(woken) X(invalid) X(owed) X(geometry) X(track_size)             \
  X(extent_size) X(_shadow) X(_pending) X(active_on_disk) X(generation_on_disk) X(on_path_loss) X(pair) X(committed)   \
  X(peer_generation) X(last_write) X(_bytes) X(_flip) X(_tickets) X(read_bytes) X(write_bytes) X(mirrored_bytes)       \
  X(note_sent) X(leave) X(wake) X(idle) X(lock) X(acquire) X(release) X(release_woken) X(pins) X(pin) X(sum_s)         \
  X(export) X(_session) X(_pair) X(_heard_at) X(is_open) X(failed) X(running) X(waiters) X(written_bytes)              \
  X(copied_bytes) X(fetched_bytes) X(fetched_tracks) X(_is_for_host) X(target)
#define DECLARE(name) static PyObject *n_##name;
NAMES(DECLARE)

static PyObject *ticket_type, *extent_type, *pass_type, *span_type; /* of gate, core, lane and geometry */
static Py_ssize_t ticket_offset, ticket_end, ticket_owner, ticket_blockers, ticket_is_in;
static Py_ssize_t use_in_flight, use_idle;
static PyObject *word_stop;
static long long tracks_per_page, span_most, unflushed_most;
static PyObject *bounds; /* of stats' histograms, a tuple of seconds */
static double bound_s[64];
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

/* An exception that is set stays. */
static int call_release(PyObject *lock) {
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  PyObject *done = PyObject_CallMethodNoArgs(lock, n_release);
  if (done == NULL) return -1;
  Py_DECREF(done);
  PyErr_Restore(type, value, trace);
  return 0;
}

/* As threading.Lock: waits without the interpreter's lock. */
static int call_acquire(PyObject *lock) {
  PyObject *done = PyObject_CallMethodNoArgs(lock, n_acquire);
  Py_XDECREF(done);
  return done == NULL ? -1 : 0;
}

/* What both lanes have: their owner's engine, the store, and for reads and writes each the Python callback and its times. */
enum { READ, WRITE };
struct border {
  PyObject *engine, *lock, *slow[2], *times[2], *counts[2];
  int fd;
};

/* From (engine, fd, read's histogram, write's, read's callback, write's); the border was empty. */
static int set_border(struct border *border, PyObject *from) {
  if (!PyArg_ParseTuple(from, "OiOOOO", &border->engine, &border->fd, &border->times[READ], &border->times[WRITE],
                        &border->slow[READ], &border->slow[WRITE])) {
    memset(border, 0, sizeof *border);
    return -1;
  }
  Py_INCREF(border->engine);
  border->lock = PyObject_GetAttr(border->engine, n_lock);
  int failed = border->lock == NULL;
  for (int kind = READ; kind <= WRITE; kind++) {
    Py_INCREF(border->times[kind]);
    Py_INCREF(border->slow[kind]);
    border->counts[kind] = failed ? NULL : PyObject_GetAttr(border->times[kind], n_counts);
    failed |= border->counts[kind] == NULL;
  }
  return failed ? -1 : 0;
}

static void clear_border(struct border *border) {
  Py_CLEAR(border->engine);
  Py_CLEAR(border->lock);
  for (int kind = READ; kind <= WRITE; kind++) {
    Py_CLEAR(border->slow[kind]);
    Py_CLEAR(border->times[kind]);
    Py_CLEAR(border->counts[kind]);
  }
}

/* stats.Histogram.note; result: what nbdkit is given. */
static PyObject *note_time(struct border *border, int kind, double start) {
  double elapsed_s = get_time() - start;
  Py_ssize_t at = 0;
  while (at < bound_count && bound_s[at] < elapsed_s) at++;
  PyObject *counts = border->counts[kind];
  PyObject *number = PyLong_FromLongLong(PyLong_AsLongLong(PyList_GET_ITEM(counts, at)) + 1);
  if (number == NULL || PyList_SetItem(counts, at, number)) return NULL;
  PyObject *sum = PyObject_GetAttr(border->times[kind], n_sum_s);
  if (sum == NULL) return NULL;
  PyObject *added = PyFloat_FromDouble(PyFloat_AsDouble(sum) + elapsed_s);
  Py_DECREF(sum);
  int failed = added == NULL || PyObject_SetAttr(border->times[kind], n_sum_s, added);
  Py_XDECREF(added);
  return failed ? NULL : Py_NewRef(Py_None);
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

/* Which of the run's bits are set in a bitmap.Bitmap: NONE, ALL, SOME; -1 with an exception. */
static int look_at_bits(PyObject *bitmap, long long first, long long count) {
  PyObject *bytes = PyObject_GetAttr(bitmap, n__bytes);
  int flip = get_bool(bitmap, n__flip);
  Py_buffer view;
  if (bytes == NULL || flip < 0 || PyObject_GetBuffer(bytes, &view, PyBUF_SIMPLE)) {
    Py_XDECREF(bytes);
    return -1;
  }
  long long set = 0;
  int is_inside = first >= 0 && (first + count + 7) / 8 <= view.len;
  const unsigned char *byte = view.buf;
  for (long long bit = first; is_inside && bit < first + count; bit++) set += ((byte[bit >> 3] >> (bit & 7)) & 1) != flip;
  PyBuffer_Release(&view);
  Py_DECREF(bytes);
  if (!is_inside) {
    PyErr_SetString(PyExc_IndexError, "tracks beyond the end of the volume");
    return -1;
  }
  return set == 0 ? NONE : set == count ? ALL : SOME;
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
  long long offset, length, first, count, first_extent, last_extent, distrusts;
  int is_mirrored;
  PyObject *session; /* an int or None */
  PyObject *ticket;
};

static int get_geometry(PyObject *table, struct plain *plain) {
  PyObject *geometry = PyObject_GetAttr(table, n_geometry);
  long long track_size, extent_size;
  if (geometry == NULL) return -1;
  int failed = get_int(geometry, n_track_size, &track_size) || get_int(geometry, n_extent_size, &extent_size);
  Py_DECREF(geometry);
  if (failed) return -1;
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

/* checkpoint.is_prepared but for the generation: each extent recorded as active. */
static int is_active(PyObject *core, PyObject *table, const struct plain *plain) {
  PyObject *on_disk = PyObject_GetAttr(table, n_active_on_disk), *uses = PyObject_GetAttr(core, n_extents);
  int found = on_disk == NULL || uses == NULL ? -1 : 1;
  for (long long extent = plain->first_extent; found > 0 && extent <= plain->last_extent; extent++) {
    PyObject *key = PyLong_FromLongLong(extent);
    found = key == NULL ? -1 : PySet_Contains(on_disk, key);
    if (found > 0) found = PyDict_Contains(uses, key);
    Py_XDECREF(key);
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
  if (owed < 0 || owed == SOME) return owed < 0 ? -1 : 0;
  int is_alone = is_equal(header, n_pair, Py_None);
  if (is_alone < 0) return -1;
  if (!is_alone && plain->session == Py_None && owed != ALL) return 0;
  if (!is_alone && (found = is_active(core, table, plain)) <= 0) return found;
  if ((found = needs_generation(core, table, header, plain->session))) return found < 0 ? -1 : 0;
  plain->is_mirrored = plain->session != Py_None && owed != ALL;
  if (get_int(core, n_distrusts, &plain->distrusts)) return -1;
  return is_free(tickets, plain->offset, plain->offset + plain->length);
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

static PyObject *make_pass(const struct plain *plain) {
  return PyObject_CallFunction(pass_type, "OLLOOL", plain->ticket, plain->first, plain->count,
                               plain->is_mirrored ? Py_True : Py_False, plain->session, plain->distrusts);
}

static void clear_plain(struct plain *plain) {
  Py_CLEAR(plain->session);
  Py_CLEAR(plain->ticket);
}

/* --- streams --- */

struct waiter {
  pthread_cond_t changed;
  int is_done, is_waiting, error;
  struct waiter *next, **at;
};

typedef struct {
  PyObject_HEAD
  PyObject *owner; /* the nbd.NBD that the handle belongs to */
  struct nbd_handle *handle;
  int fd, bell; /* bell: an eventfd, rung when the reader is to look for room in the socket too */
  pthread_mutex_t mutex, sending;
  int has_reader;
  struct waiter *waiters;
  long long in_flight, attended, completed; /* requests; attended: being sent or awaited, not written here meanwhile */
} Stream;

static void unlink_waiter(Stream *stream, struct waiter *waiter, int error) {
  waiter->is_done = 1;
  waiter->error = error;
  *waiter->at = waiter->next;
  if (waiter->next != NULL) waiter->next->at = waiter->at;
  stream->in_flight--;
  stream->completed++;
}

struct request {
  Stream *stream;
  struct waiter waiter;
};

static int note_answer(void *data, int *error) {
  struct request *request = data;
  pthread_mutex_lock(&request->stream->mutex);
  unlink_waiter(request->stream, &request->waiter, *error);
  pthread_cond_signal(&request->waiter.changed);
  pthread_mutex_unlock(&request->stream->mutex);
  return 1; /* libnbd forgets the command */
}

static int is_broken(Stream *stream) {
  return nbd_aio_is_dead(stream->handle) || nbd_aio_is_closed(stream->handle);
}

static int is_sending(Stream *stream) {
  return (nbd_aio_get_direction(stream->handle) & LIBNBD_AIO_DIRECTION_WRITE) != 0;
}

static int has_reader(Stream *stream) {
  pthread_mutex_lock(&stream->mutex);
  int has = stream->has_reader;
  pthread_mutex_unlock(&stream->mutex);
  return has;
}

/* What the socket has no room for is the reader's to send, who may not know of it yet.  While there is none, one of
 * those who have something to send does it, and the others go on: they will read when they wait, and answers are read
 * however much is queued. */
static void send_rest(Stream *stream) {
  if (!is_sending(stream)) return;
  if (pthread_mutex_trylock(&stream->sending) == 0) {
    while (is_sending(stream) && !has_reader(stream)) {
      struct pollfd wanted = {.fd = stream->fd, .events = POLLOUT};
      poll(&wanted, 1, POLL_MS);
      if (nbd_aio_notify_write(stream->handle) == -1 && is_broken(stream)) break;
    }
    pthread_mutex_unlock(&stream->sending);
  }
  if (is_sending(stream) && has_reader(stream)) eventfd_write(stream->bell, 1);
}

/* Without the interpreter's lock.  What fails here is told by stream_wait. */
static void stream_send(Stream *stream, struct request *request, const void *data, size_t length, long long offset) {
  request->stream = stream;
  struct waiter *waiter = &request->waiter;
  pthread_cond_init(&waiter->changed, NULL);
  waiter->is_done = waiter->is_waiting = waiter->error = 0;
  pthread_mutex_lock(&stream->mutex);
  waiter->next = stream->waiters;
  waiter->at = &stream->waiters;
  if (waiter->next != NULL) waiter->next->at = &waiter->next;
  stream->waiters = waiter;
  stream->in_flight++;
  stream->attended++;
  pthread_mutex_unlock(&stream->mutex);
  nbd_completion_callback answered = {.callback = note_answer, .user_data = request};
  if (nbd_aio_pwrite(stream->handle, data, length, (uint64_t)offset, answered, 0) == -1) {
    int error = nbd_get_errno();
    pthread_mutex_lock(&stream->mutex);
    if (!waiter->is_done) unlink_waiter(stream, waiter, error ? error : EIO);
    pthread_mutex_unlock(&stream->mutex);
  } else
    send_rest(stream);
  pthread_mutex_lock(&stream->mutex);
  stream->attended--;
  pthread_mutex_unlock(&stream->mutex);
}

/* What has come, and what could not be sent before (libnbd sends nothing while an answer is half read); 1 if broken. */
static int read_answers(Stream *stream) {
  struct pollfd wanted[] = {{.fd = stream->fd, .events = is_sending(stream) ? POLLIN | POLLOUT : POLLIN},
                            {.fd = stream->bell, .events = POLLIN}};
  poll(wanted, 2, POLL_MS);
  eventfd_t count;
  int failed = 0;
  if (wanted[1].revents) eventfd_read(stream->bell, &count);
  if (wanted[0].revents & ~POLLOUT) failed = nbd_aio_notify_read(stream->handle) == -1;
  if (wanted[0].revents & POLLOUT) nbd_aio_notify_write(stream->handle);
  return failed && is_broken(stream);
}

/* Returns the errno of the answer, 0 if it was good.  Without the interpreter's lock. */
static int stream_wait(Stream *stream, struct request *request) {
  struct waiter *waiter = &request->waiter;
  pthread_mutex_lock(&stream->mutex);
  stream->attended++;
  while (!waiter->is_done) {
    if (stream->has_reader) {
      waiter->is_waiting = 1;
      pthread_cond_wait(&waiter->changed, &stream->mutex);
      waiter->is_waiting = 0;
      continue;
    }
    stream->has_reader = 1;
    pthread_mutex_unlock(&stream->mutex);
    int broken = read_answers(stream);
    pthread_mutex_lock(&stream->mutex);
    stream->has_reader = 0;
    if (broken && !waiter->is_done) unlink_waiter(stream, waiter, ENOTCONN);
  }
  struct waiter *next = stream->has_reader ? NULL : stream->waiters;
  while (next != NULL && !next->is_waiting) next = next->next; /* who does not wait yet will read when it does */
  if (next != NULL) pthread_cond_signal(&next->changed);
  stream->attended--;
  pthread_mutex_unlock(&stream->mutex);
  pthread_cond_destroy(&waiter->changed);
  return waiter->error;
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
  pthread_mutex_init(&self->sending, NULL);
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

typedef struct {
  PyObject_HEAD
  struct border border;
  PyObject *core, *conclude;
  PyObject *session; /* of the stream */
  Stream *stream;    /* NULL: mirrored writes are not plain */
  int is_nowait;
} Lane;

static void lane_dealloc(Lane *self) {
  clear_border(&self->border);
  Py_CLEAR(self->core);
  Py_CLEAR(self->conclude);
  Py_CLEAR(self->session);
  Py_CLEAR(self->stream);
  Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *lane_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *words[] = {"border", "core", "conclude", NULL};
  PyObject *border, *core, *conclude;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OO", words, &PyTuple_Type, &border, &core, &conclude)) return NULL;
  Lane *self = (Lane *)type->tp_alloc(type, 0);
  if (self == NULL) return NULL;
  self->core = Py_NewRef(core);
  self->conclude = Py_NewRef(conclude);
  self->session = Py_NewRef(Py_None);
  self->is_nowait = 1;
  if (set_border(&self->border, border)) Py_CLEAR(self);
  return (PyObject *)self;
}

static PyObject *lane_set_stream(Lane *self, PyObject *args) {
  PyObject *session, *stream;
  if (!PyArg_ParseTuple(args, "OO", &session, &stream)) return NULL;
  if (stream != Py_None && Py_TYPE(stream) != &stream_type)
    return PyErr_Format(PyExc_TypeError, "a stream is a Stream or None");
  Stream *old = self->stream;
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
  if (call_acquire(self->border.lock)) return -1;
  PyObject *taken = Py_XNewRef((PyObject *)self->stream), *session = Py_NewRef(taken ? self->session : Py_None);
  int found = begin_write(self->core, plain, session);
  Py_DECREF(session);
  if (found > 0 && plain->is_mirrored)
    *stream = (Stream *)taken;
  else
    Py_XDECREF(taken);
  return call_release(self->border.lock) ? -1 : found;
}

static int lane_end(Lane *self, struct plain *plain) {
  if (call_acquire(self->border.lock)) return -1;
  int found = end_write(self->core, plain);
  if (found > 0) {
    must(release_woken(self->core, self->border.engine));
    PyObject *table = PyObject_GetAttr(self->core, n_table), *header;
    must(table == NULL || (header = PyObject_GetAttr(table, n_header)) == NULL);
    must(set_int(header, n_last_write, (long long)time(NULL)));
    Py_DECREF(table);
    Py_DECREF(header);
  }
  return call_release(self->border.lock) ? -1 : found;
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
  if (call_acquire(self->border.lock)) return -1;
  int found = may_read(self, plain, 1);
  if (call_release(self->border.lock)) return -1;
  if (found <= 0) return found;
  int error;
  Py_BEGIN_ALLOW_THREADS;
  error = read_all(self->border.fd, view->buf, (size_t)view->len, plain->offset);
  Py_END_ALLOW_THREADS;
  if (call_acquire(self->border.lock)) return -1;
  long long distrusts;
  must(get_int(self->core, n_distrusts, &distrusts));
  leave(self->core);
  must(release_woken(self->core, self->border.engine));
  if (call_release(self->border.lock)) return -1;
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

static PyMethodDef lane_methods[] = {
    {"pread", (PyCFunction)(void (*)(void))lane_pread, METH_FASTCALL, "nbdkit's callback"},
    {"pwrite", (PyCFunction)(void (*)(void))lane_pwrite, METH_FASTCALL, "nbdkit's callback"},
    {"set_stream", (PyCFunction)lane_set_stream, METH_VARARGS, "(session, its stream or None) from here on"},
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
};

/* --- the destination's lane: target.Target's read and write for a session that is open and was heard just now --- */

typedef struct {
  PyObject_HEAD
  struct border border;
  PyObject *owner, *target, *header, *export_type;
  long long track_size;
} TargetLane;

static void target_dealloc(TargetLane *self) {
  clear_border(&self->border);
  Py_CLEAR(self->owner);
  Py_CLEAR(self->target);
  Py_CLEAR(self->header);
  Py_CLEAR(self->export_type);
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
  if (set_border(&self->border, border)) Py_CLEAR(self);
  return (PyObject *)self;
}

/* service.PeerService.hear, while nothing is unusual about it. */
static int hear(TargetLane *self, double now) {
  PyObject *heard = PyObject_GetAttr(self->owner, n__heard_at);
  if (heard == NULL) return -1;
  int is_usual = PyFloat_CheckExact(heard) && now - PyFloat_AS_DOUBLE(heard) < HEARD_SPARE_S;
  Py_DECREF(heard);
  if (!is_usual) return 0;
  PyObject *time = PyFloat_FromDouble(now);
  int failed = time == NULL || PyObject_SetAttr(self->owner, n__heard_at, time);
  Py_XDECREF(time);
  return failed ? -1 : 1;
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
  int found = hear(self, now);
  if (found <= 0) return found;
  if (call_acquire(self->border.lock)) return -1;
  found = target_enter(self, turn->export, turn->session, turn->pair, is_write);
  return call_release(self->border.lock) ? -1 : found;
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
    int failed = call_acquire(self->border.lock);
    if (!failed && !error)
      failed = is_write ? count_write(self, turn.export, view.len) : count_read(self, turn.export, offset, view.len);
    must(failed || target_leave(self, turn.session));
    must(call_release(self->border.lock));
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

static PyMethodDef target_methods[] = {
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
  if (bound_count < 0 || bound_count > 64) return -1;
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
      PyModule_AddIntConstant(module, "VERSION", VERSION)) {
    Py_DECREF(module);
    return NULL;
  }
  return module;
}
