// A network over flat parameters, as Python sees it: its training steps, acting, values.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <tuple>

#include "binding.hpp"
#include "training.hpp"

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
    const int seen = chain(trunk, plan_.trunk, inputs, false);
    plan_.size = chain(actor, plan_.actor, seen, true);
    need(critic.empty() || chain(critic, plan_.critic, seen, true) == 1, "the critic must end in one number");
    need(!actor.empty(), "the actor needs a layer");
    int total = 0;
    for (const int n : choices) need(n > 0, "a choice is of at least one action"), total += n;
    need(choices.empty() ? log_std >= 0 : total == plan_.size, "the head does not fit the actor");
    plan_.log_std_sums = plan_.sums;
    if (choices.empty()) {
      plan_.sums += padded(plan_.size);
      parameters_ = std::max(parameters_, log_std + plan_.size);
    }
    plan_.widest = std::max<int64_t>(plan_.widest, plan_.size);
    training_.emplace(plan_);
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
    const int64_t m = observation.shape(0), n = parameters.shape(0);
    need(has_critic(), "there is no critic");
    check(n, observation.shape(1));
    const Buffers buffers = buffers_of(parameters, gradient, first_moment, second_moment);
    const Minibatches minibatches = minibatches_of(index, m, sizes, metrics);
    for (const auto* column : {&old_log_prob, &old_value, &advantage, &target})
      need(int64_t(column->shape(0)) == m, "a column of the batch has another number of rows");
    const Products products = bfloat16 ? halves() : Products::floats;
    need(!bfloat16 || (products != Products::floats && tiled()), "no products in bfloat16, or no layer for them");
    Batch batch{observation.data(), nullptr, nullptr, nullptr, old_log_prob.data(), old_value.data(), advantage.data(),
                target.data()};
    need(plan_.gaussian() ? action.has_value() : choice.has_value(), "the action is of another kind");
    batch.action = rows_of(action, m, plan_.size);
    batch.choice = rows_of(choice, m, plan_.actions());
    if (!plan_.gaussian()) check_choices(batch.choice, index);
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
      need(!minibatches.sizes.empty() && total_of(*chunk_rows) == minibatches.sizes[0] && chunk_gradients &&
               chunk_gradients->shape(0) == chunk_rows->shape(0) && int64_t(chunk_gradients->shape(1)) <= n,
           "chunks do not fit the first minibatch or their gradients");
      chunks.rows.assign(chunk_rows->data(), chunk_rows->data() + chunk_rows->shape(0));
      chunks.gradients = chunk_gradients->data();
      chunks.kept = chunk_gradients->shape(1);
      chunks.total.resize(n);
    }
    finish();
    const nb::gil_scoped_release released;
    const Call call(mutex_);
    auto kernel = [&](const Weights& weights, float sample_weight, auto... rest) {
      Loss own = loss;
      own.sample_weight = sample_weight;
      kernels->gradient(plan_, own, weights, batch, rest...);
    };
    return training_->steps(kernel, minibatches, buffers, descent, products, std::move(chunks), threads);
  }

  // The same for action-values, which are the actor's numbers: steps down E[(q(s, a) - y)^2] / 2, or Huber's loss, where
  // y = R + D max_a' q_next(s', a'), the maximum over legal actions. Where the next observation is given, the network
  // itself chooses a' there.
  int64_t train_action_values(Vector<float> parameters, Vector<float> gradient, Vector<float> first_moment,
                              Vector<float> second_moment, Rows<double> metrics, Rows<const float> observation,
                              Vector<const int64_t> choice, Vector<const float> reward, Vector<const float> discount,
                              Rows<const float> next_q, Given<const float> next_observation, Rows<const bool> next_legal,
                              Vector<const int64_t> index, Vector<const int64_t> sizes, bool huber,
                              const Descent& descent, int threads) {
    const int64_t m = observation.shape(0);
    check(parameters.shape(0), observation.shape(1));
    check_action_values();
    const Buffers buffers = buffers_of(parameters, gradient, first_moment, second_moment);
    const Minibatches minibatches = minibatches_of(index, m, sizes, metrics);
    for (const int64_t rows : {choice.shape(0), reward.shape(0), discount.shape(0), next_q.shape(0), next_legal.shape(0)})
      need(rows == m, "a column of the batch has another number of rows");
    for (const int64_t columns : {next_q.shape(1), next_legal.shape(1)})
      need(columns == plan_.size, "there is another number of actions");
    check_choices(choice.data(), index);
    const Transitions batch{observation.data(),
                            choice.data(),
                            reward.data(),
                            discount.data(),
                            next_q.data(),
                            rows_of(next_observation, m, plan_.inputs),
                            reinterpret_cast<const uint8_t*>(next_legal.data())};
    finish();
    const nb::gil_scoped_release released;
    const Call call(mutex_);
    auto kernel = [&](const Weights& weights, float sample_weight, auto... rest) {
      kernels->temporal(plan_, {huber, sample_weight}, weights, batch, rest...);
    };
    return training_->steps(kernel, minibatches, buffers, descent, Products::floats, {}, threads);
  }

  void act(Vector<const float> parameters, Rows<const float> observation, Given<const double> uniform,
           Given<const float> normal, Given<const bool> mask, Given<int64_t> choice, Given<float> action,
           Vector<float> log_prob, int threads, bool same) {
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
    const Call call(mutex_);
    const Weights weights = prepare(parameters.data(), plan_.actor, threads, same);
    auto work = [&](int task, int worker) {
      const int64_t from = int64_t{task} * SHARE;
      auto part = [from](auto* all, int64_t width) { return all ? all + from * width : nullptr; };
      kernels->act(plan_, weights, part(observation.data(), plan_.inputs), part(uniforms, size), part(normals, size),
                   part(allowed, size), int(std::min(SHARE, rows - from)),
                   part(choices, plan_.actions()), part(numbers, size), part(log_prob.data(), 1),
                   training_->scratch(worker));
    };
    in_parallel(shares(rows), threads, work);
  }

  // q(s, a) for each action, into `out` [B][A].
  void action_values(Vector<const float> parameters, Rows<const float> observation, Rows<float> out, int threads) {
    const int64_t rows = observation.shape(0);
    check(parameters.shape(0), observation.shape(1));
    check_action_values();
    need(int64_t(out.shape(0)) == rows && int64_t(out.shape(1)) == plan_.size, "out has another shape");
    finish();
    const nb::gil_scoped_release released;
    const Call call(mutex_);
    numbers(parameters.data(), observation.data(), rows, out.data(), threads, false);
  }

  // Draws from (1 - epsilon) [a greedy] + epsilon / n over n legal actions: whether any one, and which, by uniform [2][B].
  void explore(Vector<const float> parameters, Rows<const float> observation, Rows<const float> uniform,
               Given<const bool> mask, float epsilon, Vector<int64_t> choice, Vector<float> log_prob, int threads,
               bool same) {
    const int64_t rows = observation.shape(0), size = plan_.size;
    check(parameters.shape(0), observation.shape(1));
    check_action_values();
    need(uniform.shape(0) == 2 && int64_t(uniform.shape(1)) == rows, "uniform has another shape");
    need(int64_t(choice.shape(0)) == rows && int64_t(log_prob.shape(0)) == rows, "choice or log_prob has other rows");
    const bool* allowed = rows_of(mask, rows, size);
    finish();
    const nb::gil_scoped_release released;
    const Call call(mutex_);
    q_.resize(rows * size);
    numbers(parameters.data(), observation.data(), rows, q_.data(), threads, same);
    for (int64_t b = 0; b < rows; ++b) {
      auto legal = [&](int64_t a) { return allowed == nullptr || allowed[b * size + a]; };
      int64_t count = 0, greedy = 0, any = 0;
      float best = -INFINITY;
      for (int64_t a = 0; a < size; ++a) {
        const float q = q_[b * size + a];
        if (!legal(a)) continue;
        if (count++ == 0 || q > best || (q != q && best == best)) best = q, greedy = a;
      }
      int64_t left = std::min(int64_t(uniform.data()[rows + b] * float(count)), count - 1);
      while (any + 1 < size && (!legal(any) || left-- > 0)) ++any;
      const int64_t taken = choice.data()[b] = uniform.data()[b] < epsilon ? any : greedy;
      log_prob.data()[b] = std::log(epsilon / float(count) + (taken == greedy ? 1 - epsilon : 0.0f));
    }
  }

  // Lets other threads begin to put v(s) of each row into `value`; `finish`, or any other call, does what is left.
  void begin_values(Vector<const float> parameters, Rows<const float> observation, Vector<float> value, int threads,
                    bool same) {
    check(parameters.shape(0), observation.shape(1));
    need(has_critic() && value.shape(0) == observation.shape(0), "value has another number of rows, or there is no critic");
    finish();
    const Call call(mutex_);
    const Weights weights = prepare(parameters.data(), plan_.critic, threads, same);
    begun_.emplace(Values{*this, weights, parameters, observation, value});
    const auto work = [](void* begun, int task, int worker) { static_cast<Values*>(begun)->take(task, worker); };
    begin(begun_->tasks(), threads, work, &*begun_);
  }

  void finish() {
    if (!begun_) return;
    upslope::finish();
    begun_.reset();
  }

  void values(Vector<const float> parameters, Rows<const float> observation, Vector<float> value, int threads) {
    check(parameters.shape(0), observation.shape(1));
    need(has_critic() && value.shape(0) == observation.shape(0), "value has another number of rows, or there is no critic");
    finish();
    const nb::gil_scoped_release released;
    const Call call(mutex_);
    const Weights weights = prepare(parameters.data(), plan_.critic, threads, false);
    const float* from = observation.data();
    float* const to = value.data();
    const int64_t rows = observation.shape(0);
    auto work = [&](int task, int worker) { values_of(weights, from, rows, to, task, worker); };
    in_parallel(shares(rows), threads, work);
  }

  bool tiled() const { return tiled_; }

  ~Network() { finish(); }

 private:
  int chain(const std::vector<LayerTuple>& tuples, Chain& into, int inputs, bool head) {
    need(tuples.size() <= 64, "at most 64 layers in a row");
    for (const auto& [in, out, activation, weight, bias] : tuples) {
      need(in == inputs && out > 0 && activation >= 0 && activation <= 3 && weight >= 0 && bias >= 0,
           "the layers do not fit each other");
      const bool last = into.size() + 1 == tuples.size();
      into.push_back({in, out, Activation(activation), weight, bias, head && last, plan_.sums, plan_.packed});
      const Layer& layer = into.back();
      tiled_ |= layer.tiled();
      plan_.packed += padded(layer.packed_floats());
      plan_.sums += layer.lines() * layer.row();
      plan_.features += padded(out) * (Activation(activation) == Activation::silu ? 2 : 1);
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

  void check_choices(const int64_t* choice, const Vector<const int64_t>& index) const {
    const int64_t actions = plan_.actions();
    bool fine = true;
    for (size_t i = 0; i < index.shape(0); ++i)
      for (int64_t k = 0; k < actions; ++k)
        fine &= uint64_t(choice[index.data()[i] * actions + k]) < uint64_t(plan_.choices[k]);
    need(fine, "a choice is out of range");
  }

  // What acting, or values, take: scratch for each thread, and the weights of the trunk and a chain behind it. To pack them
  // takes longer than a few rows do: `same` says that the parameters are what they were at the last call.
  Weights prepare(const float* parameters, const Chain& behind, int threads, bool same) {
    training_->prepare(threads);
    if (!packed_) packed_ = zeros(plan_.packed);
    if (!same || parameters != packed_from_) packed_chains_.clear();
    packed_from_ = parameters;
    for (const Chain* chain : {&std::as_const(plan_.trunk), &behind}) {
      if (std::ranges::find(packed_chains_, chain) != packed_chains_.end()) continue;
      for (const Layer& layer : *chain) kernels->pack_layer(layer, parameters, false, false, packed_.get());
      packed_chains_.push_back(chain);
    }
    return {parameters, packed_.get(), Products::floats};
  }

  static constexpr int64_t SHARE = 64;  // rows that a thread takes at once
  static int shares(int64_t rows) { return int((rows + SHARE - 1) / SHARE); }

  void values_of(const Weights& weights, const float* observation, int64_t rows, float* value, int task, int worker) {
    const int64_t from = int64_t{task} * SHARE;
    kernels->values(plan_, weights, observation + from * plan_.inputs, int(std::min(SHARE, rows - from)), value + from,
                    training_->scratch(worker));
  }

  void numbers(const float* parameters, const float* observation, int64_t rows, float* out, int threads, bool same) {
    const Weights weights = prepare(parameters, plan_.actor, threads, same);
    auto work = [&](int task, int worker) {
      const int64_t from = int64_t{task} * SHARE;
      kernels->numbers(plan_, weights, observation + from * plan_.inputs, int(std::min(SHARE, rows - from)),
                       out + from * plan_.size, training_->scratch(worker));
    };
    in_parallel(shares(rows), threads, work);
  }

  bool has_critic() const { return !plan_.critic.empty(); }

  void check_action_values() const {
    const bool alone = plan_.trunk.empty() && !has_critic();
    need(plan_.choices.size() == 1 && alone, "action-values are of one choice, without a trunk or a critic");
  }

  template <class T>
  static T* rows_of(const Given<T>& given, int64_t rows, int64_t width) {
    if (!given) return nullptr;
    need(given->ndim() > 0 && int64_t(given->shape(0)) == rows && int64_t(given->size()) == rows * width,
         "action, noise or mask has another shape");
    return given->data();
  }

  struct Values {  // v(s) of each row, some rows at a time; it keeps the arrays
    Network& network;
    Weights weights;
    Vector<const float> parameters;
    Rows<const float> observation;
    Vector<float> value;

    int tasks() const { return shares(observation.shape(0)); }
    void take(int task, int worker) {
      network.values_of(weights, observation.data(), observation.shape(0), value.data(), task, worker);
    }
  };

  Plan plan_{};
  int64_t parameters_ = 0;  // at least as many are needed
  std::mutex mutex_;
  std::optional<Training> training_;  // made with the whole plan
  bool tiled_ = false;
  Floats packed_;                 // weights as acting reads them, of these parameters, of these chains
  const float* packed_from_ = nullptr;
  std::vector<const Chain*> packed_chains_;
  std::vector<float> q_;         // of the last exploration
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
      .def("train", &Network::train, "parameters"_out, "gradient"_out, "first_moment"_out, "second_moment"_out, "metrics"_out,
           "observation"_a, "choice"_a.none(), "action"_a.none(), "mask"_a.none(), "old_log_prob"_a, "old_value"_a,
           "advantage"_a, "target"_a, "index"_a, "sizes"_a, "clipped"_a, "ratio"_a, "value_range"_a, "value_weight"_a,
           "entropy_weight"_a, "chunk_rows"_a.none(), "chunk_gradients"_out.none(), "descent"_a, "bfloat16"_a, "threads"_a)
      .def("train_action_values", &Network::train_action_values, "parameters"_out, "gradient"_out, "first_moment"_out,
           "second_moment"_out, "metrics"_out, "observation"_a, "choice"_a, "reward"_a, "discount"_a, "next_q"_a,
           "next_observation"_a.none(), "next_legal"_a, "index"_a, "sizes"_a, "huber"_a, "descent"_a, "threads"_a)
      .def("explore", &Network::explore, "parameters"_a, "observation"_a, "uniform"_a, "mask"_a.none(), "epsilon"_a,
           "choice"_out, "log_prob"_out, "threads"_a, "same"_a = false)
      .def("action_values", &Network::action_values, "parameters"_a, "observation"_a, "out"_out, "threads"_a)
      .def("act", &Network::act, "parameters"_a, "observation"_a, "uniform"_a.none(), "normal"_a.none(), "mask"_a.none(),
           "choice"_out.none(), "action"_out.none(), "log_prob"_out, "threads"_a, "same"_a = false)
      .def("values", &Network::values, "parameters"_a, "observation"_a, "value"_out, "threads"_a)
      .def("begin_values", &Network::begin_values, "parameters"_a, "observation"_a, "value"_out, "threads"_a,
           "same"_a = false)
      .def("finish", &Network::finish)
      .def_prop_ro("tiled", &Network::tiled);
}

}  // namespace upslope
