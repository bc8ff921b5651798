// What the kernels are told: a policy's layers, a batch's arrays, a loss's coefficients. Plain data, the same for every
// instruction set.
//
// A block of samples is kept sample by sample, [sample][feature], padded with zeros to whole lines of cache: vectors run
// over features, so that all three products of a layer read what the others wrote, and nothing has to be turned but the
// weights, once for many samples. Only what a loss reads, the numbers of the heads, is [number][sample]: vectors run over
// samples there, and a loss is written for one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace upslope {

constexpr int BLOCK = 128;  // samples that go forward and backward together, in cache
constexpr int LINE = 16;   // floats in a line of cache: lines of a weight's gradient are padded to it

constexpr int64_t padded(int64_t n) { return (n + LINE - 1) / LINE * LINE; }

enum class Activation { none, tanh, relu, silu };

struct Layer {
  int inputs, outputs;
  Activation activation;
  int64_t weight, bias;  // where they begin in the flat parameters; the weight is [outputs][inputs]
  bool head = false;     // what it gives is what a loss reads
  int64_t sums = 0;      // where the padded gradient begins
  int64_t packed = 0;    // where the weight as products read it begins
  bool few() const { return head && outputs <= 6; }  // so that vectors over outputs would be mostly padding
  // The gradient is summed input by input, [inputs + 1][row()], the last line of the bias; where there are few outputs
  // output by output, [outputs][row()], the bias behind the weight.
  int64_t row() const { return padded(few() ? inputs + 1 : outputs); }
  int64_t lines() const { return few() ? outputs : inputs + 1; }
  // The weight is packed for the output, after the bias, and for the gradient of the input; a head of few outputs once.
  int64_t forward() const { return padded(outputs); }
  int64_t backward() const { return forward() + inputs * padded(outputs); }
  int64_t packed_floats() const { return few() ? outputs * padded(inputs) : backward() + outputs * padded(inputs); }
  bool tiled() const { return inputs % 32 == 0 && outputs % 32 == 0; }
};

using Chain = std::vector<Layer>;

// trunk -> (actor -> the head's numbers, critic -> v); an empty trunk passes the observation on.
struct Plan {
  int inputs;
  Chain trunk, actor, critic;
  std::vector<int> choices;  // sizes of the categoricals; empty for a diagonal Gaussian
  int size;                  // numbers of the head: logits or means
  int64_t log_std;           // where a Gaussian's log sigma begins in the flat parameters
  int64_t log_std_sums = 0;
  int64_t sums = 0;      // floats in a padded gradient
  int64_t packed = 0;    // floats that packed weights take
  int64_t widest = 0;    // of all layers and the observation
  int64_t features = 0;  // of all layers together; those before a silu are counted twice
  bool gaussian() const { return choices.empty(); }
  int actions() const { return gaussian() ? size : static_cast<int>(choices.size()); }
};

// Rows of experience, row-major; what a loss does not read may be null.
struct Batch {
  const float* observation;     // [M][inputs]
  const int64_t* choice;        // [M][actions]
  const float* action;          // [M][size], of a Gaussian
  const uint8_t* mask;          // [M][size], 1 where an action is allowed, or null
  const float* old_log_prob;    // [M]
  const float* old_value;       // [M]
  const float* advantage;       // [M]
  const float* target;          // [M]
};

enum class Surrogate { clipped, plain };

struct Loss {
  Surrogate surrogate;
  float ratio_low, ratio_high;  // where the ratio is clipped
  float clip_range;             // what `clip_fraction` counts
  bool clip_value;
  float value_range;
  float value_weight, entropy_weight;
  float sample_weight;  // 1 / rows of the minibatch
};

// Transitions, row-major: see losses/bellman.py.
struct Transitions {
  const float* observation;       // [M][inputs]
  const int64_t* choice;          // [M]
  const float* reward;            // [M]: R
  const float* discount;          // [M]: D
  const float* next_q;            // [M][size], of the target network
  const float* next_observation;  // [M][inputs], where the network itself is to choose; else null
  const uint8_t* next_legal;      // [M][size], 1 where an action is allowed
};

struct TemporalLoss {
  bool huber;
  float sample_weight;  // 1 / rows of the minibatch
};

enum Metric { POLICY_LOSS, VALUE_LOSS, ENTROPY, APPROX_KL, CLIP_FRACTION, METRICS };
enum TemporalMetric { TD_LOSS, TD_ERROR, Q };

struct Adam {
  float learning_rate, beta_1, beta_2, root_correction, epsilon;  // rate and root are already corrected for bias
  float scale;                                                    // of the gradient, below 1 where it is clipped
};

// Gated cells over packed sequences: counts[t] rows at step t, from row offsets[t] on, those of longer segments first. A
// cell has G gates; what a direction does not read or write is null. See cells.hpp.
struct Recurrence {
  int size;                             // H
  int64_t steps;
  const int64_t *counts, *offsets;
  const float* weight;                  // packed
  const float* bias;                    // [3 H], of a GRU
  const float* projected;               // [M][G H]
  const float* start;                   // [K][S]
  float* gates;                         // [M][G H]
  float* hidden;                        // [M][H]
  float* saved;                         // [M][H]: c of an LSTM, U_n h + b_n of a GRU
  const float* d_hidden;                // [M][H]
  float* d_gates;                       // [M][G H]
  float* d_products;                    // [M][3 H], of a GRU: the gradient of U h + b
  float* before;                        // [M][H]: h one step before
};

// Attention of one query: places that are kept, numbers of a head, what scores are multiplied with.
struct Heads {
  int64_t length, size;
  float scale;
};

// How the products of layers that fit tiles are taken: in float32, or in bfloat16 in registers or on tiles.
enum class Products { floats, halves, tiles };

// What a chain's weights are: the parameters, and `packed` of them.
struct Weights {
  const float *parameters, *packed;
  Products products;
  bool halved(const Layer& layer) const { return products != Products::floats && layer.tiled(); }
};

// One instruction set's kernels. `scratch` is of `scratch_floats(plan)` floats, aligned to a line of cache.
struct Kernels {
  const char* name;
  bool halves;  // whether it has products in bfloat16
  // A layer's weight as products read it, into `packed`, that of the whole plan; `further`: the gradient of its input is
  // asked for as well.
  void (*pack_layer)(const Layer&, const float* parameters, bool further, bool halved, float* packed);
  void (*gradient)(const Plan&, const Loss&, const Weights&, const Batch&, const int64_t* index, int rows, int block,
                   float* sums, double* metrics, float* scratch);
  // draws from `uniform` in [0, 1), or from `normal` for a Gaussian, [rows][size]
  void (*act)(const Plan&, const Weights&, const float* observation, const double* uniform, const float* normal,
              const uint8_t* mask, int rows, int64_t* choice, float* action, float* log_prob, float* scratch);
  void (*values)(const Plan&, const Weights&, const float* observation, int rows, float* value, float* scratch);
  // The same of action-values, whose plan has an actor and nothing else.
  void (*temporal)(const Plan&, const TemporalLoss&, const Weights&, const Transitions&, const int64_t* index, int rows,
                   int block, float* sums, double* metrics, float* scratch);
  // the numbers of the head, [rows][size]
  void (*numbers)(const Plan&, const Weights&, const float* observation, int rows, float* out, float* scratch);
  void (*join)(const float* const* slices, int count, int64_t n, float* out);  // out[i] = sum over slices
  // out [columns][rows] = the sum over slices, [rows][row] of which `columns` are read, turned
  void (*join_turned)(const float* const* slices, int count, int64_t rows, int64_t columns, int64_t row, float* out);
  double (*square)(const float* x, int64_t n);
  void (*adam)(const Adam&, int64_t n, float* gradient, float* first, float* second, float* parameters);
  // Whether numbers are from low to high, bounds of `some` in turn; NaN is not.
  bool (*inside_floats)(const float* x, int64_t n, const float* low, const float* high, int64_t some);
  bool (*inside_doubles)(const double* x, int64_t n, const double* low, const double* high, int64_t some);
  int64_t (*shuffle)(const bool* valid, int64_t n, uint32_t seed, int64_t* rows);
  // The weight [gates H][H] of a cell as the next four read it: for the forward pass turned.
  void (*pack)(const float* weight, int gates, int size, bool turned, float* packed);
  // Segments first .. last - 1 through time.
  using Cell = void(const Recurrence&, int64_t first, int64_t last, float* scratch);
  Cell *lstm_forward, *lstm_backward, *gru_forward, *gru_backward;
  // A linear layer of few rows, and attention of one query; see decoding.hpp.
  int64_t panel;
  int64_t (*packed_floats)(int64_t inputs, int64_t outputs);
  void (*pack_panels)(const float* weight, int64_t row, int64_t column, int64_t inputs, int64_t outputs, float* packed);
  void (*multiply_panel)(const float* x, int64_t rows, int64_t inputs, int64_t outputs, const float* packed,
                         const float* bias, int64_t number, float* out);
  void (*attend)(const Heads&, const float* query, const float* keys, const float* values, const uint8_t* seen,
                 float* scores, float* out);
};

inline int64_t scratch_floats(const Plan& plan) {
  const int64_t head = 8 * padded(plan.size) + 4 * plan.actions() + 2 * LINE;
  return BLOCK * (plan.features + 6 * padded(plan.widest) + 2 * padded(plan.inputs) + head) + 4096;
}

extern const Kernels portable_kernels;
#ifdef UPSLOPE_X86
extern const Kernels avx2_kernels, avx512_kernels;
#endif

}  // namespace upslope
