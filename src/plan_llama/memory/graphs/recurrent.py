"""What graphs with a recurrent state share: the inputs, and the way a state is read and written.

Mirrors build_rs_inp, build_inp_mem_hybrid and build_rs of src/llama-graph.cpp and the full memory context of
src/llama-memory-recurrent.cpp (b11434), which the reservation uses: as many states as sequences, none beside them.
"""

from __future__ import annotations

from collections.abc import Callable

from plan_llama.memory.ggml import I32, Node
from plan_llama.memory.graphs.decoder import Decoder
from plan_llama.memory.recurrent import recurrent_layers, state_elements, states_kept


class Recurrent(Decoder):
    """A decoder some or all of whose layers keep a state per sequence instead of, or beside, a cache."""

    def attention_inputs(self) -> None:
        """build_inp_mem_hybrid: the inputs of the cache, and which state each sequence continues."""
        super().attention_inputs()
        self.state_inputs()

    def state_inputs(self) -> None:
        """build_rs_inp."""
        states = self.batch.sequences
        self.sequences = 1 if self.batch.one_sequence else states
        self.tokens_each = self.batch.tokens // self.sequences
        self.copies = self.g.input(I32, states)
        # one view each for all layers: copied to another device once
        self.copies_main = self.g.view(self.copies, (self.sequences,), ())
        self.copies_tail = self.g.view(self.copies, (states - 1,), ())
        self.kept = states_kept(self.spec, self.batch.drafts)
        self.recurrent = recurrent_layers(self.spec)

    def conv_cache(self, il: int) -> Node:
        """get_r_l: the convolution's last inputs."""
        return self.b.state("r", state_elements(self.spec, il)[0], il, self.kept)

    def state_cache(self, il: int) -> Node:
        """get_s_l: the recurrent state."""
        return self.b.state("s", state_elements(self.spec, il)[1], il, self.kept)

    def load_state(self, cache: Node, take: Callable[[Node, Node], Node] | None = None) -> Node:
        """build_rs: the states of the batch's sequences, [elements, sequences].

        `take` makes an op that reads them from the cache by itself, given all states and the batch's indices.
        """
        g = self.g
        elements, count = cache.ne[0], cache.ne[1]
        states = g.reshape(cache, elements, count)
        zero = g.view(states, (elements,), ())
        g.expand(g.in_place("SCALE", zero))
        if take is None:
            rows = g.get_rows(states, self.copies)
            out = g.view(rows, (elements, self.sequences), (rows.nb[1],))
        else:
            rows = g.get_rows(states, self.copies_tail)
            out = take(states, self.copies_main)
        g.expand(out)
        rest = self.batch.sequences - self.sequences
        extra = g.view(rows, (elements, rest), (rows.nb[1],))
        g.expand(g.cpy(extra, g.view(cache, (elements, rest), (cache.nb[1],))))
        return out

    def store_state(self, cache: Node, values: Node) -> None:
        """Writes the new states of the batch's sequences over the old ones."""
        g = self.g
        g.expand(g.cpy(values, g.view(cache, (cache.ne[0], self.sequences), (cache.nb[1],))))

    def conv_state(self, size: int, channels: int, il: int) -> Node:
        """The last inputs of a layer's convolution, [size, channels, sequences]."""
        return self.g.reshape(self.load_state(self.conv_cache(il)), size, channels, self.sequences)

    def conv_step(self, before: Node, x: Node, il: int) -> Node:
        """Those and the new inputs, [size + tokens, channels, sequences]; the last of all are kept."""
        g = self.g
        conv = g.concat(before, g.transpose(x), 0)
        for _ in range(self.kept):
            self.store_state(self.conv_cache(il), g.view(conv, before.ne[:3], conv.nb[1:3]))
        return conv

    def per_sequence(self, x: Node) -> Node:
        """[width, tokens] as [width, tokens of a sequence, sequences]."""
        return self.g.reshape(x, x.ne[0], self.tokens_each, self.sequences)

    def flat(self, x: Node) -> Node:
        """Back to [width, tokens]."""
        return self.g.reshape(x, x.ne[0], x.ne[1] * x.ne[2])

    def gated_norm(self, x: Node, name: str, gate: Node) -> Node:
        """build_norm_gated of the delta nets."""
        normed = self.b.norm(x, name)
        return self.g.like("MUL", normed, self.g.like("UNARY", gate))

    def seeded_head(self, x: Node) -> None:
        """The normed state of every token stays for a draft block; then the rows that are wanted, and logits."""
        b, g = self.b, self.g
        x = b.norm(x, "output_norm")
        x.is_output = True
        x = g.get_rows(x, self.out_ids)
        if b.has("cls.output.weight"):
            found = b.mm("cls.output", x)
            found.is_output = True
            g.expand(found)
        else:
            x.is_output = True
        self.logits(x)
