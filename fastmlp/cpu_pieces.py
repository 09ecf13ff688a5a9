"""The pieces that the CPU engine's kernels are made of: products by tiles, passes over rows, updates, sharing of work.

Each is a small compiled function, or a factory of one; cpu_kernels.py puts them together.

How threads share work: the tasks of a phase are shared out in order, a share for each thread, and each share has a word that
holds the number of the phase and the next ticket. A thread claims tasks of its own share, then helps with the others'.
Whoever finishes the last task of a phase opens the next.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastmlp.cpu_compile import compiled, compiled_with_callees
from fastmlp.cpu_instructions import atomic_load, atomic_store, call, fetch_add, pause, prefetch, swap_if, yield_core
from fastmlp.cpu_plan import CHUNK_ROWS, GROUP_COLUMNS
from fastmlp.cpu_products import FLOAT_BYTES
from fastmlp.cpu_simd import TILES, make_transpose
from fastmlp.functions import ACTIVATIONS
from fastmlp.optimizers import RULES, with_penalties
from fastmlp.philox import MASK32, ROUNDS, SHIFT32, WEYL_0, WEYL_1, philox_round

ZERO, ONE = np.float32(0), np.float32(1)

# Rows of `store`
PARAMETERS, SLOT_M, SLOT_V, GRADIENT = 0, 1, 2, 3

# Rows of the batch in a piece of a gradient's sum: 128 x 2 vectors of dz are 8 KiB (AVX2), and with the tile's columns of x
# stay in the first cache
BATCH_DEPTH = 128

DROP_ROWS, DROP_COLUMNS = 48, 64  # of units whose random numbers are drawn together
DROPPED = DROP_ROWS * DROP_COLUMNS

# Words of `shared`, each on a cache line of its own: the phase, its finished tasks, and from SHARES on a word for each thread.
PHASE, DONE, SHARES = 0, 8, 16
WORDS_APART = 8
TICKETS = 32  # the low bits of a share's word hold the ticket, the high ones the phase
SPINS = 2000  # pauses before a waiting thread offers its core to another, about 50 microseconds


# ------------------------------------------------------------------------------------------------ pieces


def make_activate(names: tuple[str, ...], left_out: tuple[str, ...] = ()) -> Any:
    """activate(code, a, y, s): y holds z and becomes f(z), s becomes f'(z), for the activation number `code` of `names`.

    Those of `left_out`, which always run as epilogues, are not compiled.
    """
    if not names:
        return compiled(lambda code, a, y, s: None)
    if names[-1] in left_out:
        return make_activate(names[:-1], left_out)
    value, slope = (compiled_with_callees(f) for f in ACTIVATIONS[names[-1]][:2])
    number = len(names) - 1
    others = make_activate(names[:-1], left_out)

    @compiled
    def activate(code, a, y, s):
        if code == number:
            for i in range(len(y)):
                z = y[i]
                y[i] = value(z, a)
                s[i] = slope(z, y[i], a)
        else:
            others(code, a, y, s)

    return activate


def scratch_size() -> int:
    """Floats of a thread's scratch: sums that go on in `gradient`, or numbers drawn in `drop_rows`."""
    return max(GROUP_COLUMNS * CHUNK_ROWS, 2 * DROPPED)


def make_pack(lanes: int) -> Any:
    """pack(plan, arena, packed, width, panel, panels, first, rows, scale): multiply a block of dz, copy it to its packed place.

    Panels [panel, panel + panels), an even first, of the rows [first, first + rows), while they are fresh in the cache.
    """
    pair = TILES[lanes].vectors
    two = pair * lanes

    @compiled
    def pack(plan, arena, packed, width, panel, panels, first, rows, scale):
        size = plan.widths[width]
        for q in range(panel, panel + panels, pair):
            columns = min(pair, panel + panels - q) * lanes
            pair_at = size.packed_at + q // pair * plan.rows * two
            for r in range(first, first + rows):
                source, to = size.dz_at + r * size.ld + q * lanes, pair_at + r * two
                dz, copy = arena[source : source + columns], packed[to : to + columns]
                if scale != ONE:
                    for j in range(columns):
                        dz[j] *= scale
                for j in range(columns):
                    copy[j] = dz[j]

    return pack


@compiled
def add_rows(matrix, rows, ld, sums):
    """sums += each row of a matrix, in order but four at a time: adding one by one would wait for each sum."""
    n = len(sums)
    fours = rows // 4
    for r in range(fours):
        block = matrix[4 * r * ld :]
        a, b, c, d = block[:n], block[ld : ld + n], block[2 * ld : 2 * ld + n], block[3 * ld : 3 * ld + n]
        for j in range(n):
            sums[j] += (a[j] + b[j]) + (c[j] + d[j])
    for r in range(4 * fours, rows):
        a = matrix[r * ld : r * ld + n]
        for j in range(n):
            sums[j] += a[j]


def make_gradient(lanes: int, penalised: bool, in_registers: bool) -> Any:
    """gradient(code, plan, store, arena, packed, own, scalars, task, rows): dw = x' dz, db = 1' dz over `rows` rows.

    For a rectangle of weights and, with the topmost one, its columns' biases. In registers, each tile ends with the update
    of its weights; otherwise the gradient with its penalties goes to the row GRADIENT of `store`. Biases always go there.
    """
    penalise, pair = compiled_with_callees(with_penalties), TILES[lanes].vectors

    @compiled
    def gradient(code, plan, store, arena, packed, own, scalars, task, rows):
        layer, panel, panels = task.layer, task.panel, task.panels
        size, below = plan.layers[layer], plan.widths[layer]
        a = arena.ctypes.data + (below.y_at + task.first) * FLOAT_BYTES
        dz_pair = plan.rows * pair * lanes
        dz_at = plan.widths[layer + 1].packed_at + panel // pair * dz_pair
        b = packed.ctypes.data + dz_at * FLOAT_BYTES
        start = size.w_at + (panel * size.fan_in_p + task.first) * lanes
        panel_size, slot = size.fan_in_p * lanes, store.shape[1]
        p = store.ctypes.data + ((PARAMETERS if in_registers else GRADIENT) * slot + start) * FLOAT_BYTES
        for r in range(0, rows, BATCH_DEPTH):
            depth = min(BATCH_DEPTH, rows - r)
            call(
                code.gradient,
                (
                    a, below.ld, b, dz_pair, panels, own.ctypes.data, CHUNK_ROWS * lanes, r, depth,
                    p, panel_size, task.rows, slot, scalars.ctypes.data, np.int64(r + depth == rows),
                ),
            )  # fmt: skip
        if penalised and not in_registers:
            s = scalars_of(scalars[0])
            for q in range(panels):
                at = start + q * panel_size
                w, g = store[PARAMETERS, at : at + task.rows * lanes], store[GRADIENT, at : at + task.rows * lanes]
                for i in range(len(g)):
                    g[i] = penalise(w[i], g[i], s)
        if task.first == 0:
            for q in range(0, panels, pair):
                columns, b_at = min(pair, panels - q) * lanes, size.b_at + (panel + q) * lanes
                sums = store[GRADIENT, b_at : b_at + columns]
                sums[:] = ZERO
                at = dz_at + q // pair * dz_pair
                add_rows(packed[at : at + dz_pair], rows, pair * lanes, sums)

    return gradient


def make_update(lanes: int, rule_name: str) -> Any:
    """update(store, at, size, s): the rule over a run of parameters with the gradients in their row of `store`.

    Slots that the rule lacks are left alone.
    """
    rule = compiled_with_callees(RULES[rule_name].update)
    has_m, has_v = "m" in RULES[rule_name].slots, "v" in RULES[rule_name].slots

    @compiled
    def update(store, at, size, s):
        p, m, v = store[PARAMETERS, at : at + size], store[SLOT_M, at : at + size], store[SLOT_V, at : at + size]
        g = store[GRADIENT, at : at + size]
        for i in range(size):
            p_new, m_new, v_new = rule(p[i], g[i], m[i] if has_m else ZERO, v[i] if has_v else ZERO, s)
            p[i] = p_new
            if has_m:
                m[i] = m_new
            if has_v:
                v[i] = v_new

    return update


def make_finish(lanes: int, rule_name: str) -> Any:
    """finish(plan, store, transposed, scalars, task, weights): the update of a rectangle's biases, and of its weights if asked.

    Renews the transposed copy, which the gradient of the layer's input reads.
    """
    update, transpose = make_update(lanes, rule_name), make_transpose(lanes)

    @compiled
    def finish(plan, store, transposed, scalars, task, weights):
        size = plan.layers[task.layer]
        for panel in range(task.panel, task.panel + task.panels):
            at = size.w_at + (panel * size.fan_in_p + task.first) * lanes
            if weights:
                update(store, at, task.rows * lanes, scalars_of(scalars[0]))
        if task.layer > 0:
            for k in range(0, task.rows, lanes):
                for panel in range(task.panel, task.panel + task.panels):
                    source = size.w_at + (panel * size.fan_in_p + task.first + k) * lanes
                    to = size.t_at + ((task.first + k) // lanes * size.fan_out_p + panel * lanes) * lanes
                    transpose(store.ctypes.data + source * FLOAT_BYTES, lanes, transposed.ctypes.data + to * FLOAT_BYTES, lanes)
        if task.first == 0:
            update(store, size.b_at + task.panel * lanes, task.panels * lanes, scalars_of(scalars[1]))

    return finish


@compiled
def scale_row(x, shift, factor, out):
    """out = (x - shift) factor for one row, from uint8 or float32."""
    for k in range(len(x)):
        out[k] = (np.float32(x[k]) - shift[k]) * factor[k]


one_round = compiled(philox_round)


@compiled
def draw_words(words, group, groups, row, rows, layer, step, seed):
    """`philox.philox4x32` of the counters (group + g, row + r, layer, step): word w of each in words[w, r groups + g].

    Round by round over all of them, so that each round becomes vector instructions. words: (4, at least rows groups) uint32.
    """
    k0, k1 = np.uint64(seed) & MASK32, np.uint64(seed) >> SHIFT32
    n = rows * groups  # slices of whole rows of `words` stay contiguous, which vector instructions need
    w0, w1, w2, w3 = words[0][:n], words[1][:n], words[2][:n], words[3][:n]
    for r in range(rows):
        groups_of_row, row_of_groups = w0[r * groups : (r + 1) * groups], w1[r * groups : (r + 1) * groups]
        for g in range(len(groups_of_row)):
            groups_of_row[g], row_of_groups[g] = np.uint32(group + g), np.uint32(row + r)
    w2[:], w3[:] = np.uint32(layer), np.uint32(step)
    for _ in range(ROUNDS):
        for i in range(len(w0)):
            a, b, c, d = one_round(np.uint64(w0[i]), np.uint64(w1[i]), np.uint64(w2[i]), np.uint64(w3[i]), k0, k1)
            w0[i], w1[i], w2[i], w3[i] = np.uint32(a), np.uint32(b), np.uint32(c), np.uint32(d)
        k0, k1 = (k0 + WEYL_0) & MASK32, (k1 + WEYL_1) & MASK32


@compiled
def drop_rows(y, s, slopes, ld, own, column, columns, layer, row, rows, step, seed, threshold, scale):
    """Multiply a block of activations, and of their slopes if asked, by the dropout factors of `philox.keep_mask`.

    Columns [column, column + columns), multiples of 4, of rows [row, row + rows), which are `ld` apart in y and s. own: a
    thread's scratch, at least `scratch_size()`.
    """
    words = own[:DROPPED].view(np.uint32).reshape(4, DROPPED // 4)
    factors = own[DROPPED : 2 * DROPPED]
    for c in range(0, columns, DROP_COLUMNS):
        width = min(DROP_COLUMNS, columns - c)
        groups = width // 4
        for r in range(0, rows, DROP_ROWS):
            count = min(DROP_ROWS, rows - r)
            draw_words(words, (column + c) // 4, groups, row + r, count, layer, step, seed)
            w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
            for i in range(count * groups):
                j = np.uint64(4 * i)  # unsigned, or Numba would ask whether it is negative
                factors[j] = scale if w0[i] >= threshold else ZERO
                factors[j + np.uint64(1)] = scale if w1[i] >= threshold else ZERO
                factors[j + np.uint64(2)] = scale if w2[i] >= threshold else ZERO
                factors[j + np.uint64(3)] = scale if w3[i] >= threshold else ZERO
            for i in range(count):
                at = (r + i) * ld + c
                y_row, s_row, factor = y[at : at + width], s[at : at + width], factors[i * width : (i + 1) * width]
                for j in range(len(factor)):
                    y_row[j] *= factor[j]
                if slopes:
                    for j in range(len(factor)):
                        s_row[j] *= factor[j]


@compiled
def first_peak(z):
    """Index of the first largest element, as np.argmax for finite numbers."""
    best = 0
    for j in range(1, len(z)):
        if z[j] > z[best]:
            best = j
    return best


@compiled
def gather(batches, start, first, rows, width, arena):
    """Scaled inputs of the rows [first, first + rows) of the batch that starts at `start` in the order."""
    features = len(batches.shift)
    for r in range(first, first + rows):
        at, source = width.y_at + r * width.ld, batches.order[start + r]
        if len(batches.labels):
            prefetch(batches.labels.ctypes.data + source * batches.labels.itemsize)
        scale_row(batches.x[source], batches.shift, batches.factor, arena[at : at + features])


@compiled
def scalars_of(row):
    """A row of the table as a tuple, so that loops over parameters keep it in registers."""
    return (row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9])


@compiled
def clip(gradient, largest):
    """Scale the whole gradient, padding (zeros) included, down to Euclidean norm `largest` if it is longer."""
    total = 0.0
    for i in range(len(gradient)):
        total += np.float64(gradient[i]) * np.float64(gradient[i])
    norm = math.sqrt(total)
    if norm > largest:
        scale = np.float32(largest / norm)
        for i in range(len(gradient)):
            gradient[i] *= scale


# ------------------------------------------------------------------------------------------------ sharing work


@compiled
def claim(shared, share, phase, tasks):
    """The next ticket of a share of `tasks` tasks, or -1 if there is none left or the phase is over."""
    at = shared + 8 * (SHARES + WORDS_APART * share)
    while True:
        word = atomic_load(at)
        ticket = word & ((1 << TICKETS) - 1)
        if word >> TICKETS != phase or ticket >= tasks:
            return -1
        if swap_if(at, word, word + 1):
            return ticket


@compiled
def last_of_phase(shared, done, tasks):
    """Report `done` finished tasks; True to the thread that reports the last of all, which must then open the next phase.

    The atomic add makes what every thread wrote in the phase visible to this one.
    """
    return done > 0 and fetch_add(shared + 8 * DONE, done) == tasks - done


@compiled
def open_phase(shared, threads, phase):
    """Open a phase: the releases make all that was written before visible to whoever claims a task in it."""
    atomic_store(shared + 8 * DONE, 0)
    for t in range(threads):
        atomic_store(shared + 8 * (SHARES + WORDS_APART * t), phase << TICKETS)
    atomic_store(shared + 8 * PHASE, phase)


@compiled
def wait_for_end_of(shared, phase):
    """Wait until another phase is open: spin, then let others have the core."""
    spins = 0
    while atomic_load(shared + 8 * PHASE) == phase:
        pause()
        spins += 1
        if spins > SPINS:
            yield_core()
