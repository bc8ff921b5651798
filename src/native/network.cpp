// A network over flat parameters, as Python sees it: its training steps, acting, values.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <tuple>

#include "binding.hpp"
#include "pool.hpp"
#include "sums.hpp"

namespace upslope {

using namespace nb::literals;

namespace {

using LayerTuple = std::tuple<int, int, int, int64_t, int64_t>;  // inputs, outputs, activation, weight, bias

class Network {
 public:
  Network(int inputs, const std::vector<LayerTuple>& trunk, const std::vector<LayerTuple>& actor,
          const std::vector<LayerTuple>& critic, const std::vector<int>& choices, int64_t log_std) {
    plan_.inputs = inputs;
    plan_.widest = inputs;
    plan_.choices = choices;
    plan_.log_std = log_std;
    const int seen = chain(trunk, plan_.trunk, inputs);
    plan_.size = chain(actor, plan_.actor, seen);
    need(chain(critic, plan_.critic, seen) == 1, "the critic must end in one number");
    need(!actor.empty() && !critic.empty(), "actor and critic need a layer each");
    int total = 0;
    for (const int n : choices) need(n > 0, "a choice is of at least one action"), total += n;
    need(choices.empty() ? log_std >= 0 : total == plan_.size, "the head does not fit the actor");
    plan_.log_std_sums = plan_.sums;
    if (choices.empty()) {
      plan_.sums += padded(plan_.size);
      parameters_ = std::max(parameters_, log_std + plan_.size);
    }
    plan_.widest = std::max<int64_t>(plan_.widest, plan_.size);
    sums_.emplace(plan_);
  }

  // One step of Adam on each minibatch, in turn: `sizes` [K] of them follow one another in `index`. Puts the means of what
  // is logged, and the gradient's norm, into `metrics` [K][METRICS + 1] and returns how many steps were taken: fewer where
  // a gradient was not finite, which changes nothing. Where `chunk_rows` [G] says that the first minibatch is G groups of
  // rows, one after the other, the mean gradient of each in the first Q parameters is put into `chunk_gradients` [G][Q].
  int64_t train(Vector<float> parameters, Vector<float> gradient, Vector<float> first_moment, Vector<float> second_moment,
                Rows<double> metrics, Rows<const float> observation, Given<const int64_t> choice,
                Given<const float> action, Given<const bool> mask, Vector<const float> old_log_prob,
                Vector<const float> old_value, Vector<const float> advantage, Vector<const float> target,
                Vector<const int64_t> index, Vector<const int64_t> sizes, bool clipped,
                std::tuple<double, double, double> ratio, double value_range, double value_weight,
                double entropy_weight, std::optional<Vector<const int64_t>> chunk_rows,
                std::optional<Rows<float>> chunk_gradients, const Descent& descent, bool bfloat16, int threads) {
    const int64_t m = observation.shape(0), rows = index.shape(0), n = parameters.shape(0), steps = sizes.shape(0);
    check(parameters.shape(0), observation.shape(1));
    for (const auto* each : {&gradient, &first_moment, &second_moment})
      need(int64_t(each->shape(0)) == n, "buffers differ in size");
    need(int64_t(metrics.shape(0)) == steps && metrics.shape(1) == METRICS + 1, "metrics of another size");
    for (const auto* column : {&old_log_prob, &old_value, &advantage, &target})
      need(int64_t(column->shape(0)) == m, "a column of the batch has another number of rows");
    need(within(index, m), "index is out of range");
    need(total_of(sizes) == rows, "minibatches do not fit the index");
    need(!bfloat16 || (tiles() && kernels->pack_weights && tiled()), "no tiles, or no layer for them");
    Batch batch{observation.data(), nullptr, nullptr, nullptr, old_log_prob.data(), old_value.data(), advantage.data(),
                target.data()};
    need(plan_.gaussian() ? action.has_value() : choice.has_value(), "the action is of another kind");
    batch.action = rows_of(action, m, plan_.size);
    batch.choice = rows_of(choice, m, plan_.actions());
    batch.mask = reinterpret_cast<const uint8_t*>(rows_of(mask, m, plan_.size));
    const auto [low, high, range] = ratio;
    Loss loss{clipped ? Surrogate::clipped : Surrogate::plain,
              float(low),
              float(high),
              float(range),
              value_range >= 0,
              float(value_range),
              float(value_weight),
              float(entropy_weight),
              0.0f};
    Chunks chunks;
    if (chunk_rows) {
      need(steps > 0 && total_of(*chunk_rows) == sizes.data()[0] && chunk_gradients &&
               chunk_gradients->shape(0) == chunk_rows->shape(0) && int64_t(chunk_gradients->shape(1)) <= n,
           "chunks do not fit the first minibatch or their gradients");
      chunks.rows.assign(chunk_rows->data(), chunk_rows->data() + chunk_rows->shape(0));
      chunks.gradients = chunk_gradients->data();
      chunks.kept = chunk_gradients->shape(1);
      chunks.total.resize(n);
    }
    finish();
    if (bfloat16 && !packed_) packed_ = zeros(packed_size(plan_));
    const nb::gil_scoped_release released;
    const std::lock_guard lock(mutex_);
    const Buffers buffers{n, parameters.data(), gradient.data(), first_moment.data(), second_moment.data()};
    const int64_t* here = index.data();
    for (int64_t k = 0; k < steps; here += sizes.data()[k], ++k) {
      const int64_t size = sizes.data()[k];
      double* found = metrics.data() + k * (METRICS + 1);
      std::fill_n(found, METRICS + 1, 0.0);
      loss.sample_weight = float(1.0 / double(size));
      if (bfloat16) kernels->pack_weights(plan_, buffers.parameters, packed_.get());
      const double square = run(loss, buffers.parameters, bfloat16 ? packed_.get() : nullptr, batch, here, size,
                                buffers.gradient, found, chunks, threads);
      const double norm = found[METRICS] = std::sqrt(square);
      chunks = {};
      if (!std::isfinite(norm)) return k;
      sums_->descend(descent.settings(descent.step + k, norm), buffers, threads);
    }
    return steps;
  }

  void act(Vector<const float> parameters, Rows<const float> observation, Given<const double> uniform,
           Given<const float> normal, Given<const bool> mask, Given<int64_t> choice, Given<float> action,
           Vector<float> log_prob, int threads) {
    const int64_t rows = observation.shape(0), size = plan_.size;
    check(parameters.shape(0), observation.shape(1));
    const double* uniforms = rows_of(uniform, rows, size);
    const float* normals = rows_of(normal, rows, size);
    need(plan_.gaussian() ? !uniforms && normals : uniforms && !normals, "the noise is of another kind");
    need(int64_t(log_prob.shape(0)) == rows, "log_prob has another number of rows");
    float* numbers = rows_of(action, rows, size);
    int64_t* choices = rows_of(choice, rows, plan_.actions());
    need(plan_.gaussian() ? action.has_value() : choice.has_value(), "the action is of another kind");
    const auto* allowed = reinterpret_cast<const uint8_t*>(rows_of(mask, rows, size));
    finish();
    const nb::gil_scoped_release released;
    const std::lock_guard lock(mutex_);
    prepare(threads);
    auto work = [&](int task, int worker) {
      const int64_t from = int64_t{task} * BLOCK;
      auto part = [from](auto* all, int64_t width) { return all ? all + from * width : nullptr; };
      kernels->act(plan_, parameters.data(), part(observation.data(), plan_.inputs), part(uniforms, size),
                   part(normals, size), part(allowed, size), int(std::min<int64_t>(BLOCK, rows - from)),
                   part(choices, plan_.actions()), part(numbers, size), part(log_prob.data(), 1),
                   scratch_[worker].get());
    };
    in_parallel(int((rows + BLOCK - 1) / BLOCK), threads, work);
  }

  // Lets other threads begin to put v(s) of each row into `value`; `finish`, or any other call, does what is left.
  void begin_values(Vector<const float> parameters, Rows<const float> observation, Vector<float> value, int threads) {
    check(parameters.shape(0), observation.shape(1));
    need(value.shape(0) == observation.shape(0), "value has another number of rows");
    finish();
    const std::lock_guard lock(mutex_);
    prepare(threads);
    begun_.emplace(Values{*this, parameters, observation, value});
    const auto work = [](void* begun, int task, int worker) { static_cast<Values*>(begun)->block(task, worker); };
    begin(begun_->blocks(), threads, work, &*begun_);
  }

  void finish() {
    if (!begun_) return;
    upslope::finish();
    begun_.reset();
  }

  void values(Vector<const float> parameters, Rows<const float> observation, Vector<float> value, int threads) {
    check(parameters.shape(0), observation.shape(1));
    need(value.shape(0) == observation.shape(0), "value has another number of rows");
    finish();
    Values all{*this, parameters, observation, value};
    auto work = [&](int task, int worker) { all.block(task, worker); };
    const nb::gil_scoped_release released;
    const std::lock_guard lock(mutex_);
    prepare(threads);
    in_parallel(all.blocks(), threads, work);
  }

  bool tiled() const { return plan_.packed > 0; }

  ~Network() { finish(); }

 private:
  int chain(const std::vector<LayerTuple>& tuples, Chain& into, int inputs) {
    need(tuples.size() <= 64, "at most 64 layers in a row");
    for (const auto& [in, out, activation, weight, bias] : tuples) {
      need(in == inputs && out > 0 && activation >= 0 && activation <= 3 && weight >= 0 && bias >= 0,
           "the layers do not fit each other");
      into.push_back({in, out, Activation(activation), weight, bias, plan_.sums, plan_.packed});
      if (into.back().tiled()) plan_.packed += int64_t{in} * out;  // two bytes a number, and once more turned
      plan_.sums += into.back().lines() * into.back().row();
      plan_.features += padded(out + 1) * (Activation(activation) == Activation::silu ? 2 : 1);
      plan_.widest = std::max<int64_t>(plan_.widest, std::max(in, out));
      parameters_ = std::max({parameters_, weight + int64_t{out} * in, bias + out});
      inputs = out;
    }
    return inputs;
  }

  void check(size_t parameters, size_t inputs) const {
    need(int64_t(parameters) >= parameters_, "fewer parameters than the layers name");
    need(int64_t(inputs) == plan_.inputs, "observation has another width");
  }

  static int64_t total_of(const Vector<const int64_t>& sizes) {
    int64_t total = 0;
    for (size_t i = 0; i < sizes.shape(0); ++i) need(sizes.data()[i] > 0, "a part without rows"), total += sizes.data()[i];
    return total;
  }

  template <class T>
  static T* rows_of(const Given<T>& given, int64_t rows, int64_t width) {
    if (!given) return nullptr;
    need(given->ndim() > 0 && int64_t(given->shape(0)) == rows && int64_t(given->size()) == rows * width,
         "action, noise or mask has another shape");
    return given->data();
  }

  void prepare(int threads) {
    while (int(scratch_.size()) < std::max(threads, 1)) scratch_.push_back(zeros(scratch_floats(plan_)));
  }

  struct Values {  // v(s) of each row, block by block; it keeps the arrays
    Network& network;
    Vector<const float> parameters;
    Rows<const float> observation;
    Vector<float> value;

    int blocks() const { return int((observation.shape(0) + BLOCK - 1) / BLOCK); }
    void block(int task, int worker) {
      const int64_t from = int64_t{task} * BLOCK, inputs = network.plan_.inputs;
      kernels->values(network.plan_, parameters.data(), observation.data() + from * inputs,
                      int(std::min<int64_t>(BLOCK, observation.shape(0) - from)), value.data() + from,
                      network.scratch_[worker].get());
    }
  };

  struct Chunks {
    std::vector<int64_t> rows;  // of each; none: the gradient of each is not asked for
    float* gradients = nullptr;
    int64_t kept = 0;  // of the parameters
    std::vector<float> total;  // of one chunk after the first
  };

  // Puts the gradient of the rows `index` into `gradient`, adds to the metrics, and returns the gradient's squared norm.
  //
  // Rows are cut into blocks, blocks into slices; a slice adds its blocks in order into its own sums, and the slices are
  // added in order. Neither cut depends on the number of threads, so the result does not either. No slice is of two
  // chunks.
  double run(const Loss& loss, const float* parameters, const float* packed, const Batch& batch, const int64_t* index,
             int64_t rows, float* gradient, double* metrics, Chunks& chunks, int threads) {
    const int block = rows >= 4 * BLOCK ? BLOCK : (rows >= BLOCK ? BLOCK / 2 : LINE);
    const int64_t fit = std::max<int64_t>(4, (int64_t{1} << 24) / plan_.sums);  // 64 MiB of sums, or four
    const std::vector<int64_t> whole{rows}, &parts = chunks.rows.empty() ? whole : chunks.rows;
    std::vector<int64_t> begins{0}, slices;  // where each slice begins; how many each part has
    for (const int64_t part : parts) {
      const int64_t blocks = (part + block - 1) / block, first = begins.back();
      const int64_t room = std::max<int64_t>(1, fit / int64_t(parts.size()));
      int64_t n = std::min({blocks, std::max<int64_t>(4, blocks / 4), int64_t{64}, room});
      if (n > 4) n -= n % 4;  // as many for each of two or four threads
      for (int64_t s = 1; s <= n; ++s) begins.push_back(first + std::min(blocks * s / n * block, part));
      slices.push_back(n);
    }
    const int count = int(begins.size()) - 1;
    prepare(threads);
    sums_->begin(count, std::max(threads, 1));
    std::vector<double> found(count * METRICS, 0.0);
    auto work = [&](int slice, int worker) {
      kernels->gradient(plan_, loss, parameters, packed, batch, index + begins[slice],
                        int(begins[slice + 1] - begins[slice]), block, sums_->take(slice, worker), &found[slice * METRICS], scratch_[worker].get());
    };
    in_parallel(count, threads, work);
    for (int i = 0; i < count * METRICS; ++i) metrics[i % METRICS] += found[i];
    if (chunks.rows.empty()) return sums_->join(0, count, gradient, threads);
    std::vector<float>& other = chunks.total;
    const int64_t n = other.size();
    for (int k = 0, first = 0; k < int(parts.size()); first += int(slices[k]), ++k) {
      float* own = k == 0 ? gradient : other.data();
      sums_->join(first, int(slices[k]), own, threads);
      const float share = float(double(rows) / double(parts[k]));
      for (int64_t i = 0; i < chunks.kept; ++i) chunks.gradients[k * chunks.kept + i] = own[i] * share;
      for (int64_t i = 0; k > 0 && i < n; ++i) gradient[i] += own[i];
    }
    return sums_->square(gradient, threads);
  }

  Plan plan_{};
  int64_t parameters_ = 0;  // at least as many are needed
  std::mutex mutex_;
  std::vector<Floats> scratch_;
  Floats packed_;             // weights for tiles, where they are asked for
  std::optional<Sums> sums_;  // made with the whole plan
  std::optional<Values> begun_;  // which other threads may be at
};

}  // namespace

void bind_network(nb::module_& m) {
  nb::class_<Descent>(m, "Descent")
      .def(nb::init<double, int64_t, double, double, double, double>(), "learning_rate"_a, "step"_a, "max_norm"_a,
           "beta_1"_a, "beta_2"_a, "epsilon"_a);
  nb::class_<Network>(m, "Network")
      .def(nb::init<int, const std::vector<LayerTuple>&, const std::vector<LayerTuple>&, const std::vector<LayerTuple>&,
                    const std::vector<int>&, int64_t>())
      .def("train", &Network::train, "parameters"_a, "gradient"_a, "first_moment"_a, "second_moment"_a, "metrics"_a,
           "observation"_a, "choice"_a.none(), "action"_a.none(), "mask"_a.none(), "old_log_prob"_a, "old_value"_a,
           "advantage"_a, "target"_a, "index"_a, "sizes"_a, "clipped"_a, "ratio"_a, "value_range"_a, "value_weight"_a,
           "entropy_weight"_a, "chunk_rows"_a.none(), "chunk_gradients"_a.none(), "descent"_a, "bfloat16"_a, "threads"_a)
      .def("act", &Network::act, "parameters"_a, "observation"_a, "uniform"_a.none(), "normal"_a.none(), "mask"_a.none(),
           "choice"_a.none(), "action"_a.none(), "log_prob"_a, "threads"_a)
      .def("values", &Network::values, "parameters"_a, "observation"_a, "value"_a, "threads"_a)
      .def("begin_values", &Network::begin_values, "parameters"_a, "observation"_a, "value"_a, "threads"_a)
      .def("finish", &Network::finish)
      .def_prop_ro("tiled", &Network::tiled);
}

}  // namespace upslope
